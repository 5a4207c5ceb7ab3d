"""What ends a request and what does not: deadlines, stop strings, faults, NaN, aborts, Ctrl-C; and who gets text."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import NAN, POISON, FakeClock, FakeRunner, byte_tokenizer, expected_answer, fake_engine, fake_spec

from kvik.engine.continuation import Continuation
from kvik.engine.engine import Engine
from kvik.engine.outputs import Answer
from kvik.errors import EngineError, InvalidRequestError, NumericalError
from kvik.request import CompletionOutput, FinishReason, RequestOutput, SamplingParams
from kvik.step import StepPlan
from kvik.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


def finish(engine: Engine) -> None:
    while engine.has_unfinished():
        engine.step()


def only(answer: Answer) -> CompletionOutput:
    return answer.output().outputs[0]


def test_a_deadline_ends_a_request_with_what_it_has() -> None:
    clock = FakeClock()
    engine = fake_engine(clock=clock)
    answer = engine.add([1, 2], SamplingParams(temperature=0, max_tokens=50, deadline_s=10), request_id="a")
    other = engine.add([1, 2], GREEDY, request_id="b")
    for _ in range(3):
        engine.step()
    clock.now += 10
    assert answer in engine.step()
    assert only(answer).finish_reason == "deadline"
    assert only(answer).token_ids == expected_answer([1, 2], answer.params)[:3]
    finish(engine)
    assert only(other).finish_reason == "length"


def test_a_deadline_passes_in_the_queue_too() -> None:
    clock = FakeClock()
    engine = fake_engine(clock=clock, max_num_seqs=1)
    engine.add([1], SamplingParams(max_tokens=50), request_id="running")
    waiting = engine.add([2], SamplingParams(deadline_s=1), request_id="waiting")
    engine.step()
    clock.now += 2
    engine.step()
    assert only(waiting).finish_reason == "deadline"
    assert only(waiting).token_ids == []


def test_the_model_is_not_run_for_nothing() -> None:
    clock, runner = FakeClock(), FakeRunner()
    engine = fake_engine(runner, clock=clock)
    assert engine.step() == []
    answer = engine.add([1], SamplingParams(deadline_s=1), request_id="a")
    clock.now += 2
    assert engine.step() == [answer]
    assert runner.plans == []


def test_a_stop_string_across_tokens_ends_the_answer_before_it(tokenizer: Tokenizer) -> None:
    free = expected_answer([1, 2, 3], SamplingParams(temperature=0, max_tokens=40))
    text = tokenizer.decode(free)
    places = [i for i in range(4, len(text) - 1) if text[i].isascii() and text[i + 1].isascii()]
    stop = text[places[0] : places[0] + 2]
    engine = fake_engine(tokenizer=tokenizer)
    answer = engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=40, stop=stop), request_id="a")
    finish(engine)
    output = only(answer)
    assert output.text == text[: text.index(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert output.token_ids == free[: len(output.token_ids)]
    assert len(output.token_ids) < 40
    assert engine.stats().blocks_used == 0


def test_a_stop_string_in_the_last_token_wins_over_the_length(tokenizer: Tokenizer) -> None:
    ids = expected_answer([7], SamplingParams(temperature=0, max_tokens=60))
    last = next(i for i, token in enumerate(ids) if tokenizer.decode([token]).isascii() and token not in ids[:i])
    params = SamplingParams(temperature=0, max_tokens=last + 1, stop=tokenizer.decode([ids[last]]))
    engine = fake_engine(tokenizer=tokenizer)
    answer = engine.add([7], params, request_id="a")
    finish(engine)
    assert only(answer).finish_reason == "stop"


def test_a_stop_token_ends_the_answer_and_is_not_text(tokenizer: Tokenizer) -> None:
    ids = expected_answer([5], SamplingParams(temperature=0, max_tokens=8))
    engine = fake_engine(tokenizer=tokenizer, spec=fake_spec(eos_ids=(ids[4],)))
    stopped = engine.add([5], SamplingParams(temperature=0, max_tokens=8), request_id="a")
    ignoring = engine.add([5], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), request_id="b")
    finish(engine)
    assert only(stopped).token_ids == ids[:5]
    assert (only(stopped).finish_reason, only(stopped).stop_reason) == ("stop", ids[4])
    assert only(stopped).text == tokenizer.decode(ids[:4])
    assert only(ignoring).token_ids == ids


def test_only_the_request_that_raises_fails() -> None:
    engine = fake_engine(max_num_batched_tokens=32)
    good = [engine.add([i] * (9 * i + 1), GREEDY, request_id=f"good {i}") for i in range(5)]
    engine.step()
    bad = engine.add([POISON, 1], GREEDY, request_id="bad")
    late = engine.add([*range(100)], GREEDY, request_id="late")
    finish(engine)
    assert only(bad).finish_reason == "error"
    assert type(bad.error) is EngineError
    assert "is poison" in str(bad.error)
    for answer in [*good, late]:
        assert only(answer).token_ids == expected_answer(answer.prompt_token_ids, GREEDY)
    assert engine.metrics.ended["error"] == 1
    assert engine.metrics.steps_isolated == 1
    assert engine.stats().blocks_used == 0


def test_blocks_of_a_request_that_raised_are_not_given_to_others_as_a_cached_prefix() -> None:
    prompt = [*range(100)]
    engine = fake_engine(FakeRunner(hook=fail_whenever(lambda plan: plan.step == 0)), max_num_batched_tokens=64)
    bad = engine.add(prompt, GREEDY, request_id="bad")
    finish(engine)
    again = engine.add(prompt, GREEDY, request_id="again")
    finish(engine)
    assert only(bad).finish_reason == "error"
    assert again.output().num_cached_tokens == 0
    assert only(again).token_ids == expected_answer(prompt, GREEDY)


def fail_whenever(condition) -> object:  # type: ignore[no-untyped-def]
    def hook(plan: StepPlan) -> None:
        if condition(plan):
            raise RuntimeError("told to")

    return hook


def test_a_step_that_fails_once_is_repaired_without_a_trace() -> None:
    failing = [3]

    def condition(plan: StepPlan) -> bool:
        return plan.step in failing and bool(failing.remove(plan.step) or True)

    engine = fake_engine(FakeRunner(hook=fail_whenever(condition)))
    params = SamplingParams(n=3, seed=4, max_tokens=9, logprobs=1, prompt_logprobs=0)
    answers = [engine.add([i, 2], params, request_id=str(i)) for i in range(4)]
    finish(engine)
    for answer in answers:
        for choice in answer.output().outputs:
            assert choice.token_ids == expected_answer(answer.prompt_token_ids, params, choice=choice.index)
            assert len(choice.logprobs or []) == 9
    assert engine.metrics.steps_isolated == 1


def test_a_runner_that_fails_for_more_than_one_row_still_makes_progress() -> None:
    engine = fake_engine(FakeRunner(hook=fail_whenever(lambda plan: plan.num_rows > 1)))
    params = SamplingParams(n=2, seed=4, max_tokens=5, logit_bias={3: 1.0}, repetition_penalty=1.2, min_tokens=2)
    answers = [engine.add([i] * 40, params, request_id=str(i)) for i in range(4)]
    finish(engine)
    for answer in answers:
        for choice in answer.output().outputs:
            assert choice.token_ids == expected_answer(answer.prompt_token_ids, params, choice=choice.index)


def test_nan_fails_its_request_alone() -> None:
    engine = fake_engine()
    bad = engine.add([NAN], SamplingParams(n=2, max_tokens=3), request_id="bad")
    good = engine.add([1], GREEDY, request_id="good")
    finish(engine)
    assert isinstance(bad.error, NumericalError)
    assert "bad" in str(bad.error)
    assert [output.finish_reason for output in bad.output().outputs] == ["error", "error"]
    assert only(good).token_ids == expected_answer([1], GREEDY)
    assert engine.metrics.numerical_errors == 1


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.DEADLINE])
def test_an_abort_before_the_fork_ends_every_choice(reason: FinishReason) -> None:
    engine = fake_engine(max_num_batched_tokens=16)
    answer = engine.add([1] * 40, SamplingParams(n=4), request_id="a")
    engine.step()
    assert engine.abort("a", reason) is answer
    assert [output.finish_reason for output in answer.output().outputs] == [reason.value] * 4
    assert engine.abort("a") is None
    assert not engine.has_unfinished()
    assert engine.stats().requests_ended[reason.value] == 1
    assert engine.step() == []


def test_ctrl_c_in_the_model_takes_the_step_back() -> None:
    interrupt = [True]

    def hook(plan: StepPlan) -> None:
        if plan.step == 2 and interrupt.pop():
            raise KeyboardInterrupt

    engine = fake_engine(FakeRunner(hook=hook))
    answer = engine.add([1, 2, 3], GREEDY, request_id="a")
    engine.step()
    engine.step()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    interrupt.append(False)
    finish(engine)
    assert only(answer).token_ids == expected_answer([1, 2, 3], GREEDY)


def test_text_is_made_step_by_step_only_for_who_reads_it(tokenizer: Tokenizer) -> None:
    engine = fake_engine(tokenizer=tokenizer)
    lazy = engine.add([1], GREEDY, request_id="lazy")
    eager = engine.add([1], GREEDY, request_id="eager", stream=True)
    pieces = []
    while engine.has_unfinished():
        engine.step()
        assert lazy.is_finished or only(lazy).text == ""
        pieces.append(eager.choices[0].take_text())
    assert "".join(pieces) == only(lazy).text == only(eager).text != ""
    assert sum(map(bool, pieces)) > 1


def test_a_request_without_a_seed_gets_one_by_its_order_of_arrival() -> None:
    def tokens(seed: int) -> list[list[int]]:
        engine = fake_engine(seed=seed)
        answers = [engine.add([1], SamplingParams(), request_id=str(i)) for i in range(3)]
        finish(engine)
        return [only(answer).token_ids for answer in answers]

    first = tokens(seed=1)
    assert first == tokens(seed=1)
    assert first != tokens(seed=2)
    assert len({tuple(ids) for ids in first}) == 3


def test_a_refused_request_changes_nothing() -> None:
    engine = fake_engine()
    with pytest.raises(InvalidRequestError):
        engine.add([], GREEDY, request_id="a")
    answer = engine.add([1], SamplingParams(), request_id="a")
    with pytest.raises(InvalidRequestError, match=r"request_id 'a'"):
        engine.add([1], GREEDY, request_id="a")
    finish(engine)
    assert (engine.metrics.accepted, engine.metrics.refused) == (1, 2)
    again = fake_engine()
    same = again.add([1], SamplingParams(), request_id="b")
    finish(again)
    assert only(answer).token_ids == only(same).token_ids


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_request_whose_detokenizers_cannot_be_made_leaves_no_trace(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    engine = fake_engine(tokenizer=tokenizer)
    made: list[int] = []

    def make(tokenizer: Tokenizer, prompt: list[int], stop: object) -> Continuation:
        made.append(1)
        if len(made) == fails_at:
            raise RuntimeError("no memory for text")
        return Continuation(tokenizer, prompt)

    monkeypatch.setattr("kvik.engine.engine.Continuation", make)
    with pytest.raises(RuntimeError, match="no memory"):
        engine.add([1, 2], SamplingParams(n=3), request_id="a")
    assert len(made) == fails_at
    assert not engine.has_unfinished()
    assert not engine.scheduler.has_unfinished()
    assert engine.step() == []
    assert (engine.metrics.accepted, engine.stats().requests_waiting) == (0, 0)
    answer = engine.add([1, 2], SamplingParams(), request_id="a")
    finish(engine)
    fresh = fake_engine(tokenizer=tokenizer)
    same = fresh.add([1, 2], SamplingParams(), request_id="b")
    finish(fresh)
    assert answer.keys == same.keys
    assert only(answer).token_ids == only(same).token_ids


def test_the_answer_of_a_key_is_found_while_it_is_unfinished() -> None:
    engine = fake_engine()
    answer = engine.add([1], SamplingParams(n=2, max_tokens=3), request_id="a")
    assert engine.answer_of(answer.keys[1]) is answer
    assert engine.answer_of(answer.keys[1] + 1) is None
    finish(engine)
    assert engine.answer_of(answer.keys[0]) is None


def test_log_probabilities_are_handed_on() -> None:
    engine = fake_engine(max_num_batched_tokens=16)
    prompt = [*range(40)]
    answer = engine.add(prompt, SamplingParams(temperature=0, logprobs=2, prompt_logprobs=1), request_id="a")
    finish(engine)
    output: RequestOutput = answer.output()
    assert [entry.token_id for entry in output.outputs[0].logprobs or []] == output.outputs[0].token_ids
    assert all(len(entry.top) == 2 for entry in output.outputs[0].logprobs or [])
    scores = output.prompt_logprobs or []
    assert scores[0] is None
    assert [entry.token_id for entry in scores[1:] if entry] == prompt[1:]


def test_close_aborts_and_frees_and_may_be_repeated() -> None:
    runner = FakeRunner()
    engine = fake_engine(runner)
    answer = engine.add([1], GREEDY, request_id="a")
    engine.close()
    engine.close()
    assert only(answer).finish_reason == "abort"
    assert runner.closed == 2


def test_text_continues_the_prompt(tmp_path: Path) -> None:
    """A tokenizer that strips the space at the beginning of a text does not strip it inside one."""
    directory = Path("../shared/data/models/stories260K/hf")
    if not directory.is_dir():
        pytest.skip("../shared/data is not here")
    story = Tokenizer.from_directory(directory)
    prompt, answer = story.encode("The park."), story.encode("They ran", add_special_tokens=False)
    text = Continuation(story, prompt)
    assert text.push(answer) + text.finish() == " They ran"
    alone = Continuation(story, [story.bos_id or 0])
    assert alone.push(answer) + alone.finish() == "They ran"
