"""Same request and seed, same bytes: alone or among 63 others, whatever the chunking, the cache, preemption, threads.

A trial is one request in one condition, its token ids and log-probabilities compared byte by byte with those it gave
alone in an engine that runs whole prompts on one thread without a cache. A condition runs 64 requests at once, so it
makes 64 trials: 1,536 by default, more than 5,000 when marked slow. Where the native runner was not built, the
reference runner is held to the same law with fewer requests.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from kvik.config import EngineConfig
from kvik.engine.build import build_engine
from kvik.engine.engine import Engine
from kvik.engine.outputs import Answer
from kvik.request import RequestOutput, SamplingParams, TokenLogprobs
from kvik.runners.native import available
from kvik.step import StepPlan, StepResult

MODEL = "dummy:tiny-qwen3"
VOCAB, LONGEST = 307, 800
NATIVE = [isa for isa, refusal in available().items() if refusal is None]
BACKENDS = NATIVE or ["reference"]
CHUNKS, THREADS = (16, 64, 512), (1, 2)
PREEMPT_EVERY, MOST_PREEMPTIONS = 3, 4


@dataclass(frozen=True)
class Condition:
    """Everything that must not matter."""

    chunk: int
    threads: int = 1
    prefix_caching: bool = False
    preempt: bool = False


CONDITIONS = [Condition(*each) for each in itertools.product(CHUNKS, THREADS, (False, True), (False, True))]


@dataclass(frozen=True)
class Needle:
    """One request."""

    prompt: tuple[int, ...]
    params: SamplingParams


def make_engine(backend: str, condition: Condition, **forms: str) -> Engine:
    kind = {"backend": "reference"} if backend == "reference" else {"backend": "native", "isa": backend}
    config = EngineConfig.from_options(
        model=MODEL,
        threads=condition.threads,
        max_num_batched_tokens=condition.chunk,
        prefix_caching=condition.prefix_caching,
        max_num_seqs=64,
        max_model_len=LONGEST,
        kv_cache_memory="64MiB",
        block_size=32,
        **kind,
        **forms,
    )
    return build_engine(config)


def random_needle(rng: random.Random, beginnings: list[list[int]], longest: int) -> Needle:
    beginning = rng.choice(beginnings)[: rng.randint(0, 60)]
    ending = rng.choices(range(3, VOCAB), k=rng.randint(1, longest))
    params = SamplingParams(
        n=rng.choice([1, 1, 1, 2]),
        temperature=rng.choice([0.0, 0.7, 1.3]),
        top_k=rng.choice([0, 0, 7]),
        top_p=rng.choice([1.0, 0.9]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        presence_penalty=rng.choice([0.0, 0.0, 0.5]),
        logit_bias=rng.choice([{}, {5: 3.0}]),
        seed=rng.randrange(2**64),
        max_tokens=rng.randint(1, 12),
        logprobs=rng.choice([0, 4]),
        prompt_logprobs=rng.choice([None, None, 1]),
    )
    return Needle((*beginning, *ending), params)


def random_needles(seed: int, count: int) -> list[Needle]:
    """Requests that share beginnings; every sixteenth is long enough for several parts of attention."""
    rng = random.Random(seed)
    beginnings = [rng.choices(range(3, VOCAB), k=60) for _ in range(4)]
    return [random_needle(rng, beginnings, 600 if number % 16 == 0 else 25) for number in range(count)]


def logprob_bytes(entries: list[TokenLogprobs | None]) -> bytes:
    present = [entry for entry in entries if entry is not None]
    pairs = [(each.token_id, each.logprob) for entry in present for each in (entry, *entry.top)]
    return (
        np.array([token for token, _ in pairs], np.int32).tobytes()
        + np.array([logprob for _, logprob in pairs], np.float32).tobytes()
    )


def fingerprint(output: RequestOutput) -> tuple[Any, ...]:
    """All that a request gave, as bytes."""
    assert output.error is None
    assert output.finished
    choices = [(tuple(c.token_ids), logprob_bytes([*(c.logprobs or [])]), c.finish_reason) for c in output.outputs]
    return (*choices, logprob_bytes(output.prompt_logprobs or []))


def preempt_someone(engine: Engine, answers: Iterable[Answer], rng: random.Random) -> None:
    """Preempt a random request that runs, none too often, or a long one would never end at a few tokens a step."""
    requests = [choice.request for answer in answers for choice in answer.choices if choice.request]
    keys = [request.key for request in requests if request.num_preemptions < MOST_PREEMPTIONS]
    any(engine.scheduler.preempt(key) for key in rng.sample(keys, len(keys)))


def run_together(
    engine: Engine, needles: list[Needle], rng: random.Random, *, preempt: bool = False
) -> list[tuple[Any, ...]]:
    """Run needles at once, arriving in random order, some of them late; fingerprints in the order given."""
    order = rng.sample(range(len(needles)), len(needles))
    answers: dict[int, Answer] = {}
    for step in itertools.count():
        for number in order[: rng.randint(1, 40)]:
            needle = needles[number]
            answers[number] = engine.add(list(needle.prompt), needle.params, request_id=f"needle {number}")
            order.remove(number)
        if not order and not engine.has_unfinished():
            return [fingerprint(answers[number].output()) for number in range(len(needles))]
        if preempt and step % PREEMPT_EVERY == 0:
            preempt_someone(engine, answers.values(), rng)
        engine.step()
    raise AssertionError


def run_alone(engine: Engine, needles: list[Needle]) -> list[tuple[Any, ...]]:
    return [run_together(engine, [needle], random.Random(0))[0] for needle in needles]


def trials(
    backend: str, conditions: list[Condition], seed: int, count: int = 64, **forms: str
) -> Iterator[tuple[Condition, int]]:
    """The trials that fail: condition and number of the request."""
    needles = random_needles(seed, count)
    engine = make_engine(backend, Condition(chunk=512), **forms)
    alone = run_alone(engine, needles)
    engine.close()
    for condition in conditions:
        engine = make_engine(backend, condition, **forms)
        together = run_together(engine, needles, random.Random(seed), preempt=condition.preempt)
        stats = engine.stats()
        assert (stats.prompt_tokens_cached > 0) == condition.prefix_caching
        assert stats.preemptions > 0 or not condition.preempt
        engine.close()
        yield from ((condition, i) for i in range(count) if together[i] != alone[i])


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_bytes_do_not_depend_on_anything_else(chunk: int, threads: int) -> None:
    conditions = [each for each in CONDITIONS if (each.chunk, each.threads) == (chunk, threads)]
    assert list(trials(BACKENDS[0], conditions, seed=chunk, count=64 if NATIVE else 12)) == []


@pytest.mark.parametrize("backend", BACKENDS[1:] + ["reference"] * bool(NATIVE))
def test_bytes_do_not_depend_on_anything_else_on_the_other_paths(backend: str) -> None:
    conditions = [Condition(16, 2, prefix_caching=True, preempt=True), Condition(64, 1)]
    assert list(trials(backend, conditions, seed=7, count=12 if backend == "reference" else 24)) == []


@pytest.mark.parametrize("forms", [{"weights": "int8"}, {"weights": "int4"}, {"kv_dtype": "int8"}], ids=str)
def test_bytes_of_quantized_forms_do_not_depend_on_anything_else(forms: dict[str, str]) -> None:
    conditions = [Condition(16, 2, prefix_caching=True, preempt=True), Condition(64, 1)]
    assert list(trials(BACKENDS[0], conditions, seed=9, count=32 if NATIVE else 12, **forms)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1004))
def test_five_thousand_trials(seed: int) -> None:
    assert list(trials(BACKENDS[0], CONDITIONS, seed)) == []


def test_a_request_alone_and_preempted_every_third_step_gives_the_same_bytes() -> None:
    needles = random_needles(3, 6)
    engine = make_engine(BACKENDS[0], Condition(chunk=LONGEST))
    alone = run_alone(engine, needles)
    again = [run_together(engine, [needle], random.Random(0), preempt=True)[0] for needle in needles]
    assert again == alone
    assert engine.stats().preemptions > 0
    engine.close()


def test_a_second_run_from_the_cache_gives_the_same_bytes() -> None:
    needles = random_needles(5, 16)
    engine = make_engine(BACKENDS[0], Condition(chunk=512, prefix_caching=True))
    first = run_alone(engine, needles)
    before = engine.stats().prompt_tokens_cached
    assert run_alone(engine, needles) == first
    assert engine.stats().prompt_tokens_cached > before
    engine.close()


def depends_on_the_batch(engine: Engine) -> None:
    """Plant a fault: a result differs in its last bit when its step has an even number of rows."""
    run = engine.runner.run

    def faulty(plan: StepPlan) -> StepResult:
        result = run(plan)
        if plan.num_rows % 2:
            return result
        nudged = np.nextafter(result.sampled.logprobs, np.float32(0))
        return dataclasses.replace(result, sampled=dataclasses.replace(result.sampled, logprobs=nudged))

    engine.runner.run = faulty  # type: ignore[method-assign]


def test_a_reduction_that_depends_on_the_batch_is_caught() -> None:
    needles = random_needles(11, 8)
    engine = make_engine(BACKENDS[0], Condition(chunk=512))
    alone = run_alone(engine, needles)
    assert run_together(engine, needles, random.Random(1)) == alone
    depends_on_the_batch(engine)
    assert run_together(engine, needles, random.Random(1)) != alone
    engine.close()
