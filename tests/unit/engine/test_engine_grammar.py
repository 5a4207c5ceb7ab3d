"""Structured output through the engine: valid whatever happens to a request, its own, and nobody else's business."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import jsonschema
import pytest
from fakes import FakeRunner, expected_answer, fake_engine
from grammar_toys import ENDS, VOCAB, grammar_engine, random_schema

from kvik.engine.engine import Engine
from kvik.engine.outputs import Answer
from kvik.errors import InvalidRequestError
from kvik.request import CompletionOutput, SamplingParams
from kvik.step import StepPlan
from kvik.text import grammar
from kvik.text.matcher import Matcher

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
MADE = grammar.json_schema(PERSON)
PROMPT = list(range(65, 90))


def finish(engine: Engine) -> None:
    while engine.has_unfinished():
        engine.step()


def outputs(answer: Answer) -> list[CompletionOutput]:
    return answer.output().outputs


def only(answer: Answer) -> CompletionOutput:
    return outputs(answer)[0]


def params(made: str = MADE, **more: Any) -> SamplingParams:
    return SamplingParams(**{"grammar": made, "max_tokens": 150, "temperature": 1.0, "seed": 5, **more})


def random_grammars(count: int, seed: int) -> list[tuple[dict[str, Any], str]]:
    """Random schemas with their grammars, without those that nothing satisfies."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        schema = random_schema(rng)
        try:
            found.append((schema, grammar.json_schema(schema)))
        except InvalidRequestError as error:
            if "nsatisfiable" not in str(error):
                raise
    return found


def check_random_schemas(count: int, seed: int) -> None:
    """Every completion that ended by itself is valid JSON of its schema, and most end by themselves."""
    engine = grammar_engine(num_blocks=120, max_num_seqs=16, max_num_batched_tokens=64)
    sent = [
        (schema, engine.add([i % 250, 3, 7], params(made, seed=i, max_tokens=250), request_id=str(i)))
        for i, (schema, made) in enumerate(random_grammars(count, seed))
    ]
    finish(engine)
    ended = [(schema, only(answer)) for schema, answer in sent if only(answer).finish_reason == "stop"]
    assert {only(answer).finish_reason for _, answer in sent} <= {"stop", "length"}
    assert len(ended) > 0.8 * count
    for schema, output in ended:
        jsonschema.validate(json.loads(output.text), schema, jsonschema.Draft202012Validator)


def test_completions_of_random_schemas_that_end_with_stop_are_valid() -> None:
    check_random_schemas(200, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_ten_thousand_completions_of_random_schemas_are_valid(seed: int) -> None:
    check_random_schemas(1000, seed)


# The same bytes, whatever happens around a request


def answers_alone(n: int = 1) -> list[list[list[int]]]:
    """Token ids of eight requests, each in an engine of its own."""
    found = []
    for i in range(8):
        engine = grammar_engine()
        answer = engine.add([*PROMPT, i], params(seed=i, n=n), request_id="alone")
        finish(engine)
        found.append([output.token_ids for output in outputs(answer)])
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 8},
        {"chunked_prefill": False, "schedule": "separate"},
        {"num_blocks": 24, "max_num_seqs": 8, "max_num_batched_tokens": 32},
        {"batching": "static", "max_num_seqs": 6},
    ],
    ids=["together", "chunked prefill", "whole prompts", "tiny pool", "static"],
)
def test_a_text_is_the_same_alone_and_in_any_company(options: dict[str, Any]) -> None:
    engine = grammar_engine(**options)
    free = SamplingParams(max_tokens=40, seed=3)
    others = [engine.add([i, 9], free, request_id=f"free {i}") for i in range(3)]
    answers = [engine.add([*PROMPT, i], params(seed=i, n=3), request_id=str(i)) for i in range(8)]
    finish(engine)
    assert [[output.token_ids for output in outputs(answer)] for answer in answers] == answers_alone(3)
    assert [only(other).token_ids for other in others] == [expected_answer([i, 9], free) for i in range(3)]
    assert len(engine.grammars) == 0


def test_choices_are_texts_of_their_own() -> None:
    engine = grammar_engine()
    answer = engine.add(PROMPT, params(n=4, seed=11, max_tokens=400), request_id="a")
    finish(engine)
    texts = [output.text for output in outputs(answer) if output.finish_reason == "stop"]
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON)
    assert len(set(texts)) == len(texts) >= 3


def test_preemption_draws_nothing_twice() -> None:
    engine, rng = grammar_engine(max_num_batched_tokens=64), random.Random(0)
    answers = [engine.add([*PROMPT, i], params(seed=i), request_id=str(i)) for i in range(8)]
    preempted = 0
    while engine.has_unfinished():
        engine.step()
        keys = [sequence.request.key for sequence in engine.scheduler.seats.running]
        preempted += bool(keys) and rng.random() < 0.5 and engine.scheduler.preempt(rng.choice(keys))
    assert preempted > 10
    assert [[only(answer).token_ids] for answer in answers] == answers_alone()


def test_rows_that_run_alone_keep_their_masks() -> None:
    def no_company(plan: StepPlan) -> None:
        if plan.num_rows > 1:
            raise RuntimeError("told to")

    engine = grammar_engine(hook=no_company)
    answers = [engine.add([*PROMPT, i], params(seed=i, n=3), request_id=str(i)) for i in range(8)]
    finish(engine)
    assert engine.metrics.steps_isolated > 0
    assert [[output.token_ids for output in outputs(answer)] for answer in answers] == answers_alone(3)


def test_a_plan_that_is_taken_back_advances_nothing() -> None:
    steps = iter(range(10**6))

    def interrupted(plan: StepPlan) -> None:
        if next(steps) % 4 == 2:
            raise KeyboardInterrupt

    engine, interrupts = grammar_engine(hook=interrupted), 0
    answers = [engine.add([*PROMPT, i], params(seed=i, n=3), request_id=str(i)) for i in range(8)]
    while engine.has_unfinished():
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts > 5
    assert [[output.token_ids for output in outputs(answer)] for answer in answers] == answers_alone(3)


class Noting:
    """A matcher that notes which tokens it is given."""

    def __init__(self, matcher: Matcher, seen: list[list[int]]) -> None:
        self._matcher, self._seen = matcher, list(seen[-1]) if seen else []
        seen.append(self._seen)
        self._all = seen

    def copy(self) -> Noting:
        return Noting(self._matcher.copy(), self._all)

    def advance(self, token_ids: Any) -> None:
        self._seen += token_ids
        self._matcher.advance(token_ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)


@pytest.mark.parametrize("ignore_eos", [False, True], ids=["with end tokens", "without"])
def test_every_token_is_followed_once_and_the_last_only_where_nothing_else_tells_the_end(ignore_eos: bool) -> None:
    """Preemptions and plans that are taken back make masks again, and follow nothing again."""
    steps = iter(range(10**6))

    def interrupted(plan: StepPlan) -> None:
        if next(steps) % 5 == 4:
            raise KeyboardInterrupt

    seen: list[list[int]] = []
    engine = grammar_engine(hook=interrupted)
    matcher: Any = Noting(engine.grammars.compile(MADE), seen)
    answer = engine.add(PROMPT, params(n=2, ignore_eos=ignore_eos, max_tokens=400), request_id="a", matcher=matcher)
    while engine.has_unfinished():
        with contextlib.suppress(KeyboardInterrupt):
            engine.step()
        engine.scheduler.preempt(answer.keys[1])
    drawn = [output.token_ids for output in outputs(answer)]
    assert [output.finish_reason for output in outputs(answer)] == ["stop", "stop"]
    assert seen == (drawn if ignore_eos else [tokens[:-1] for tokens in drawn])


# Where a text may end


def test_the_answer_ends_with_a_stop_token_exactly_where_the_grammar_may() -> None:
    engine = grammar_engine()
    answers = [engine.add([i], params(grammar.regex("(ab)+"), seed=i), request_id=str(i)) for i in range(12)]
    finish(engine)
    for answer in answers:
        output = only(answer)
        assert output.finish_reason == "stop"
        assert output.stop_reason in ENDS
        assert output.text == "ab" * (len(output.text) // 2) != ""
    assert len({only(answer).stop_reason for answer in answers}) == 2


def test_a_complete_text_without_stop_tokens_ends_by_itself() -> None:
    engine = grammar_engine()
    answer = engine.add([1], params(grammar.choice(["yes", "no"]), ignore_eos=True, n=2), request_id="a")
    finish(engine)
    assert [output.finish_reason for output in outputs(answer)] == ["stop", "stop"]
    assert {output.text for output in outputs(answer)} <= {"yes", "no"}
    assert all(output.stop_reason is None for output in outputs(answer))
    assert engine.stats().blocks_used == 0


def test_a_stop_token_that_is_also_text_is_only_drawn_to_end_the_answer() -> None:
    """Where it may not end, the grammar cannot use it; where it may, it ends it."""
    engine = grammar_engine()
    made, ends = grammar.regex('"[a-f]{3}"x?'), (*b"abcx",)
    answers = [engine.add([i], params(made, stop_token_ids=ends, seed=i), request_id=str(i)) for i in range(10)]
    finish(engine)
    for answer in answers:
        assert only(answer).finish_reason == "stop"
        assert set(only(answer).text) <= set('"def')
        assert len(only(answer).text) == 5
        assert only(answer).stop_reason in (*ENDS, *ends)


def test_min_tokens_hold_the_end_back_while_the_grammar_can_go_on() -> None:
    engine = grammar_engine()
    answer = engine.add([1], params(grammar.regex("a+"), min_tokens=20), request_id="a")
    finish(engine)
    assert len(only(answer).token_ids) >= 20
    assert only(answer).finish_reason == "stop"


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("made", [grammar.choice(["yes", "no"]), grammar.lark('start: ""')], ids=["later", "at once"])
def test_a_request_fails_clearly_when_nothing_is_left_to_draw(n: int, made: str) -> None:
    engine = grammar_engine()
    good = engine.add([2], params(), request_id="good")
    bad = engine.add([1], params(made, min_tokens=9, n=n), request_id="bad")
    finish(engine)
    assert isinstance(bad.error, InvalidRequestError)
    assert bad.error.param == "grammar"
    assert "min_tokens" in str(bad.error)
    assert {output.finish_reason for output in outputs(bad)} == {"error"}
    assert only(good).finish_reason in ("stop", "length")
    assert engine.metrics.numerical_errors == 0
    assert engine.stats().blocks_used == 0
    assert len(engine.grammars) == 0


# What goes wrong


def test_a_model_that_ignores_masks_is_noticed() -> None:
    """The planted bug: without masks, no request gets through."""
    engine = grammar_engine(ignores_masks=True)
    answers = [engine.add([i], params(seed=i), request_id=str(i)) for i in range(5)]
    free = engine.add([7], SamplingParams(max_tokens=5), request_id="free")
    finish(engine)
    for answer in answers:
        assert isinstance(answer.error, InvalidRequestError)
        assert "cannot be followed" in str(answer.error)
        assert only(answer).finish_reason == "error"
    assert only(free).finish_reason == "length"
    assert engine.stats().blocks_used == 0
    assert len(engine.grammars) == 0


def test_a_grammar_that_becomes_too_much_fails_its_request_alone() -> None:
    engine = grammar_engine()
    bad = engine.add([1], params(grammar.regex("(a|aa|aaa){1600}")), request_id="bad")
    good = engine.add([*PROMPT, 0], params(seed=0), request_id="good")
    finish(engine)
    assert isinstance(bad.error, InvalidRequestError)
    assert "cannot be followed after 2 tokens" in str(bad.error)
    assert [only(good).token_ids] == answers_alone()[0]
    assert engine.stats().blocks_used == 0
    assert len(engine.grammars) == 0


class Failing:
    """A matcher in which one of its methods raises when it is called for the `when`th time."""

    def __init__(self, matcher: Matcher, where: str, error: BaseException, when: int = 1) -> None:
        self._matcher, self._where, self._error, self._left = matcher, where, error, when

    def copy(self) -> Failing:
        return Failing(self._matcher.copy(), self._where, self._error, self._left)

    def _call(self, name: str, *args: Any) -> Any:
        self._left -= name == self._where
        if name == self._where and self._left == 0:
            raise self._error
        return getattr(self._matcher, name)(*args)

    def fill(self, address: int) -> None:
        self._call("fill", address)

    def confirm_end(self, address: int) -> bool:
        return bool(self._call("confirm_end", address))

    def advance(self, token_ids: Any) -> None:
        self._call("advance", token_ids)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("where", ["fill", "confirm_end", "advance"])
def test_whatever_raises_in_a_grammar_fails_its_request_alone(n: int, where: str) -> None:
    engine = grammar_engine()
    compiled = engine.grammars.compile(grammar.regex("(ab)+"))
    matcher: Any = Failing(compiled, where, RuntimeError("told to"))
    bad = engine.add([1], params(n=n), request_id="bad", matcher=matcher)
    good = engine.add([*PROMPT, 0], params(seed=0), request_id="good")
    finish(engine)
    assert str(bad.error) == "RuntimeError: told to"
    assert [output.finish_reason for output in outputs(bad)] == ["error"] * n
    assert [only(good).token_ids] == answers_alone()[0]
    assert engine.stats().blocks_used == 0
    assert len(engine.grammars) == 0


class FailingFirst(Failing):
    """Fails for the first choice only."""

    def copy(self) -> Any:
        return self._matcher.copy()


def test_a_choice_that_fails_at_its_first_token_takes_no_other_with_it() -> None:
    engine = grammar_engine()
    matcher: Any = FailingFirst(engine.grammars.compile(MADE), "advance", RuntimeError("told to"))
    answer = engine.add([*PROMPT, 0], params(seed=0, n=3), request_id="a", matcher=matcher)
    finish(engine)
    assert [output.finish_reason for output in outputs(answer)] == ["error", "stop", "stop"]
    assert [output.token_ids for output in outputs(answer)][1:] == answers_alone(3)[0][1:]
    assert engine.stats().blocks_used == 0


def test_an_interrupt_while_masks_are_made_loses_nothing() -> None:
    engine = grammar_engine()
    matcher: Any = Failing(engine.grammars.compile(MADE), "fill", KeyboardInterrupt(), when=4)
    answers = [engine.add([*PROMPT, 0], params(seed=0), request_id="a", matcher=matcher)]
    answers.append(engine.add([*PROMPT, 1], params(seed=1), request_id="b"))
    with pytest.raises(KeyboardInterrupt):
        finish(engine)
    finish(engine)
    assert [[only(answer).token_ids] for answer in answers] == answers_alone()[:2]


@pytest.mark.parametrize(
    "bad", ["start: nothing", '{"grammars": []}', "{", '{"grammars": [{"json_schema": {"type": 3}}]}']
)
def test_a_bad_grammar_is_refused_when_it_is_added_and_leaves_nothing(bad: str) -> None:
    engine = grammar_engine()
    with pytest.raises(InvalidRequestError) as refusal:
        engine.add([1], params(bad), request_id="a")
    assert refusal.value.param == "grammar"
    assert engine.metrics.refused == 1
    assert not engine.has_unfinished()
    assert len(engine.grammars) == 0


def test_a_request_that_the_schedule_refuses_leaves_no_grammar_behind() -> None:
    engine = grammar_engine(max_num_seqs=2)
    with pytest.raises(InvalidRequestError, match="n is 3"):
        engine.add([1], params(n=3), request_id="a")
    assert len(engine.grammars) == 0
    assert not engine.has_unfinished()
    engine.add([1], params(n=2), request_id="a")
    finish(engine)
    assert len(engine.grammars) == 0


def test_a_model_without_a_tokenizer_refuses_grammars() -> None:
    engine = fake_engine(FakeRunner())
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        engine.add([1], params(), request_id="a")


def test_aborted_and_overdue_requests_are_forgotten() -> None:
    engine = grammar_engine()
    engine.add([1], params(grammar.regex("a{900}"), n=2), request_id="abort me")
    engine.add([2], params(grammar.regex("a{900}"), deadline_s=1e-3), request_id="late")
    for _ in range(3):
        engine.step()
    engine.abort("abort me")
    finish(engine)
    assert len(engine.grammars) == 0


def test_a_grammar_may_be_compiled_before_its_request_is_added() -> None:
    engine = grammar_engine()
    engine.grammars.prepare()
    matcher = engine.grammars.compile(MADE)
    answer = engine.add([*PROMPT, 0], params(seed=0), request_id="a", matcher=matcher)
    finish(engine)
    assert [only(answer).token_ids] == answers_alone()[0]


def test_only_draws_with_a_grammar_have_a_mask() -> None:
    engine = grammar_engine()
    engine.add([1, 2], SamplingParams(max_tokens=3), request_id="a")
    engine.step()
    engine.add([1, 2], params(), request_id="b")
    engine.step()
    runner: Any = engine.runner
    first, second = (plan.sample for plan in runner.plans)
    assert len(first.masks) == len(first.mask_index) == 0
    assert second.mask_index.tolist() == [-1, 0]
    assert second.masks.shape == (1, VOCAB // 32 + 1)
    engine.step()
    third = runner.plans[2].sample
    assert third.mask_index is second.mask_index
    assert not third.mask_index.flags.writeable
    assert third.masks is not second.masks
