"""Ten thousand random requests on M0: every token is checked against recomputation, and the ledger balances.

Requests stream or not, have several choices, stop in every way, share prefixes, are aborted, run out of time, raise
or turn into NaN, on pools so small that they preempt one another.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes import NAN, POISON, FakeClock, FakeRunner, byte_tokenizer, expected_answer, fake_engine

from kvik.engine.engine import Engine
from kvik.engine.outputs import Answer
from kvik.errors import NumericalError
from kvik.request import SamplingParams
from kvik.scheduler import check_invariants
from kvik.step import StepPlan, StepResult
from kvik.text.tokenizer import Tokenizer

SHARED = [random.Random(seed).choices(range(200), k=70) for seed in range(5)]


@dataclass
class Sent:
    """A request under test, and what it is expected to meet."""

    prompt: list[int]
    params: SamplingParams
    fate: str
    answer: Answer
    streamed: str = ""


def random_params(rng: random.Random) -> SamplingParams:
    max_tokens = rng.randint(1, 12)
    return SamplingParams(
        n=rng.choice([1, 1, 1, 2, 3]),
        temperature=rng.choice([0.0, 1.0]),
        seed=rng.randrange(2**64),
        max_tokens=max_tokens,
        min_tokens=rng.randint(0, max_tokens),
        stop=rng.choice([(), (), ("A", "bc"), (" ", "\n", "zz")]),
        stop_token_ids=tuple(rng.sample(range(200), rng.choice([0, 0, 20]))),
        deadline_s=rng.choice([None, None, None, 5.0]),
    )


def random_prompt(rng: random.Random, fate: str) -> list[int]:
    prompt = rng.choice(SHARED)[: rng.randint(1, 70)] + [rng.randrange(200) for _ in range(rng.randint(0, 8))]
    marks = {"raise": POISON, "nan": NAN}
    if fate in marks:
        prompt[rng.randrange(len(prompt))] = marks[fate]
    return prompt


def send(engine: Engine, rng: random.Random, number: int) -> Sent:
    fate = rng.choices(["end", "abort", "raise", "nan"], [90, 7, 1, 2])[0]
    prompt, params, stream = random_prompt(rng, fate), random_params(rng), rng.random() < 0.5
    answer = engine.add(
        prompt, params, request_id=str(number), stream=stream, salt=rng.choice([b"", b"x"]), priority=rng.randint(0, 2)
    )
    return Sent(prompt, params, fate, answer)


def check_choice(sent: Sent, index: int, tokenizer: Tokenizer) -> None:
    """One choice against the oracle: exactly it when it ended by itself, a beginning of it otherwise."""
    output = sent.answer.output().outputs[index]
    expected = expected_answer(sent.prompt, sent.params, choice=index)
    assert output.token_ids == expected[: len(output.token_ids)]
    text_ids = output.token_ids[:-1] if isinstance(output.stop_reason, int) else output.token_ids
    text = tokenizer.decode(text_ids)
    if isinstance(output.stop_reason, str):
        assert output.finish_reason == "stop"
        assert text.startswith(output.text + output.stop_reason)
    else:
        assert output.text == text
        if output.finish_reason in ("stop", "length"):
            assert output.token_ids == expected
    assert not any(stop in output.text for stop in sent.params.stop)


def check(sent: Sent, tokenizer: Tokenizer) -> None:
    reasons = {choice.finish_reason for choice in sent.answer.output().outputs}
    allowed = {
        "end": {"stop", "length"},
        "abort": {"stop", "length", "abort"},
        "raise": {"error"},
        "nan": {"error"},
    }[sent.fate]
    assert reasons <= allowed | ({"deadline"} if sent.params.deadline_s else set())
    if "error" in reasons:
        assert isinstance(sent.answer.error, NumericalError if sent.fate == "nan" else RuntimeError)
    for index in range(sent.params.n):
        check_choice(sent, index, tokenizer)
    assert sent.streamed == sent.answer.output().outputs[0].text


def run_random(engine: Engine, clock: FakeClock, rng: random.Random, total: int) -> list[Sent]:
    """Send `total` requests in bursts while the engine steps; returns them all, ended."""
    unfinished: dict[str, Sent] = {}
    ended: list[Sent] = []
    while len(ended) < total:
        while len(unfinished) < 40 and len(unfinished) + len(ended) < total:
            sent = send(engine, rng, len(unfinished) + len(ended))
            unfinished[sent.answer.request_id] = sent
        clock.now += rng.random() * 0.3
        for answer in engine.step():
            sent = unfinished[answer.request_id]
            sent.streamed += answer.choices[0].take_text()
            if answer.is_finished:
                ended.append(unfinished.pop(answer.request_id))
        for request_id, sent in list(unfinished.items()):
            if sent.fate == "abort" and rng.random() < 0.1:
                engine.abort(request_id)
                sent.streamed += sent.answer.choices[0].take_text()
                ended.append(unfinished.pop(request_id))
    return ended


@pytest.mark.parametrize(
    "options",
    [
        {"num_blocks": 40, "max_num_seqs": 16, "max_num_batched_tokens": 64},
        {"num_blocks": 4, "max_num_seqs": 8, "max_num_batched_tokens": 16, "max_model_len": 100},
        {"num_blocks": 40, "max_num_seqs": 16, "max_num_batched_tokens": 256, "chunked_prefill": False},
        {"num_blocks": 64, "max_num_seqs": 12, "max_num_batched_tokens": 64, "schedule": "separate"},
        {"kv_layout": "contiguous", "max_num_seqs": 8, "max_num_batched_tokens": 64, "batching": "static"},
    ],
    ids=["mixed", "tiny pool", "whole prompts", "separate", "contiguous static"],
)
def test_every_token_of_random_requests_is_the_oracles(options: dict[str, object], tmp_path: Path) -> None:
    rng, clock = random.Random(str(options)), FakeClock()
    tokenizer = byte_tokenizer(tmp_path)
    engine = fake_engine(FakeRunner(), tokenizer=tokenizer, clock=clock, **options)
    ended = run_random(engine, clock, rng, total=2000)
    for sent in ended:
        check(sent, tokenizer)
    assert len({sent.answer.request_id for sent in ended}) == 2000
    metrics, stats = engine.metrics, engine.stats()
    assert metrics.accepted == metrics.finished == 2000
    assert metrics.output_tokens == sum(len(c.token_ids) for s in ended for c in s.answer.output().outputs)
    assert stats.prompt_tokens == stats.prompt_tokens_cached + stats.prompt_tokens_computed
    assert not engine.has_unfinished()
    assert not engine.scheduler.has_unfinished()
    assert stats.blocks_used == 0
    check_invariants(engine.scheduler)
    assert metrics.ended["error"] > 0
    assert metrics.ended["abort"] > 0
    if options.get("num_blocks") == 4:
        assert stats.preemptions > 0


class ForgetfulRunner(FakeRunner):
    """M0 with a planted fault: it does not copy blocks."""

    def run(self, plan: StepPlan) -> StepResult:
        return super().run(dataclasses.replace(plan, copies=plan.copies[:0]))


def test_the_oracle_catches_a_copy_that_is_not_made() -> None:
    engine = fake_engine(ForgetfulRunner())
    params = SamplingParams(n=3, seed=1, max_tokens=8)
    answer = engine.add([1, 2, 3], params, request_id="a")
    while engine.has_unfinished():
        engine.step()
    expected = [expected_answer([1, 2, 3], params, choice=index) for index in range(3)]
    assert [output.token_ids for output in answer.output().outputs] != expected
