"""The native sampler against numpy's definition: the same tokens, the same log-probabilities, on random plans.

Both compute the same float32 rules but round differently where they add, and in the last bit of exp. So where a uniform
number, or the boundary of top_p or min_p, lies within 1e-5 of the other side, the neighbour's token is accepted; such
cases are counted and must stay rare.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvik.runners.reference import sampling
from kvik.step import SamplePlan, as_int32

NEAR = 1e-5


def runnable() -> list[Any]:
    try:
        from kvik.runners.native import available
    except ImportError:
        return []
    return [isa for isa, why_not in available().items() if why_not is None]


NOT_BUILT = pytest.param("", marks=pytest.mark.skip(reason="the native library is not built here"))


@pytest.fixture(params=runnable() or [NOT_BUILT])
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def native_draw(isa: str, plan: SamplePlan, logits: np.ndarray) -> Any:
    from kvik.runners.native import draw

    return draw(isa, plan, logits)


# Random plans and rows


def random_rows(rng: np.random.Generator, count: int, vocab: int) -> np.ndarray:
    """Rows of every temper: peaked, flat, full of ties, masked with -inf, huge, tiny, and now and then broken."""
    rows = (rng.standard_normal((count, vocab)) * rng.choice([0.01, 1, 3, 8, 1e4], (count, 1))).astype(np.float32)
    for r in range(count):
        kind = rng.integers(8)
        if kind == 0:
            rows[r] = np.round(rows[r])
        elif kind == 1:
            rows[r, rng.random(vocab) < 0.5] = -np.inf
        elif kind == 2:
            rows[r] = rng.choice(np.float32([-1, 0, 0.5]), vocab)
        elif kind == 3:
            rows[r] *= np.float32(rng.choice([1e-30, 1e30]))
        elif kind == 4 and rng.random() < 0.3:
            rows[r, rng.integers(vocab)] = rng.choice([np.nan, np.inf, -np.nan])
    return rows


def random_lists(rng: np.random.Generator, count: int, most: int) -> tuple[Any, int]:
    """Prefix sums of `count` lengths, half of them 0, and their total."""
    lengths = rng.integers(0, most + 1, count) * rng.integers(0, 2, count)
    starts = as_int32(np.concatenate([[0], np.cumsum(lengths)]))
    return starts, int(starts[-1])


def random_plan(rng: np.random.Generator, count: int, vocab: int) -> SamplePlan:
    def pick(*values: float) -> Any:
        return rng.choice(np.float32(values), count)

    bias_start, num_bias = random_lists(rng, count, 6)
    history_start, num_history = random_lists(rng, count, 60)
    ids = rng.integers(0, vocab, num_bias + num_history).astype(np.int32)
    ids[num_bias:] //= rng.integers(1, 50, num_history)  # so that tokens repeat
    return SamplePlan(
        rows=rng.permutation(count).astype(np.int32),
        keys=np.arange(count),
        temperature=pick(0, 0.1, 0.6, 1, 1, 2.5, 100),
        top_k=rng.choice(as_int32([0, 0, 1, 2, 20, 500, 4000, 60000]), count),
        top_p=pick(1, 1, 0.999, 0.95, 0.6, 0.1, 1e-9),
        min_p=pick(0, 0, 0, 1e-6, 0.02, 0.3, 1),
        repetition_penalty=pick(1, 1.1, 2, 0.7),
        presence_penalty=pick(0, 0.5, -2),
        frequency_penalty=pick(0, 0.3, -0.1),
        seeds=rng.integers(0, 2**64, count, dtype=np.uint64),
        positions=rng.integers(0, 2**40, count),
        num_logprobs=rng.choice(as_int32([-1, 0, 1, 5, 20]), count),
        bias_start=bias_start,
        bias_tokens=ids[:num_bias],
        bias_values=rng.choice(np.float32([-np.inf, 3, -1.5, 100]), num_bias),
        history_start=history_start,
        history_tokens=ids[num_bias:],
        history_prompt=as_int32([rng.integers(0, n + 1) for n in np.diff(history_start)]),
    )


def neighbours(plan: SamplePlan, s: int, logits: np.ndarray) -> set[int]:
    """Every token that draw s gives when its uniform number, top_p or min_p moves by at most NEAR."""
    found = set()
    values = sampling.adjusted(plan, s, logits)
    u = sampling.uniform(int(plan.seeds[s]), int(plan.positions[s]))
    for top_p in (1 - NEAR, 1, 1 + NEAR):
        for min_p in (1 - NEAR, 1, 1 + NEAR):
            moved = replace(plan, top_p=plan.top_p * np.float32(top_p), min_p=plan.min_p * np.float32(min_p))
            weight = sampling.weights(moved, s, values)
            first, last = (sampling.inverse_cdf(weight, min(max(u + by, 0), 1)) for by in (-NEAR, NEAR))
            found |= {i for i in range(first, last + 1) if weight[i] > 0}
    return found


@np.errstate(over="ignore", invalid="ignore")
def compare(isa: str, plan: SamplePlan, logits: np.ndarray) -> int:
    """Hold every draw against the reference; returns how many needed the tolerance."""
    tokens, failed, top = native_draw(isa, plan, logits)
    expected, expected_failed, expected_top = sampling.draw(plan, logits)
    np.testing.assert_array_equal(failed, expected_failed)
    np.testing.assert_array_equal(tokens < 0, failed)
    different = np.flatnonzero(tokens != expected)
    for s in different:
        assert plan.temperature[s] > 0, "greedy has no neighbours"
        assert tokens[s] in neighbours(plan, s, logits[plan.rows[s]])
    same = tokens == expected
    np.testing.assert_array_equal(top.top_ids[~failed], expected_top.top_ids[~failed])
    np.testing.assert_allclose(top.logprobs[same], expected_top.logprobs[same], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(top.top_logprobs[~failed], expected_top.top_logprobs[~failed], rtol=2e-6, atol=2e-6)
    return len(different)


# Tests


@pytest.mark.parametrize("vocab", [1, 2, 17, 300, 1024, 1030])
def test_draws_are_those_of_the_reference(isa: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    near = sum(compare(isa, random_plan(rng, 100, vocab), random_rows(rng, 100, vocab)) for _ in range(4))
    assert near <= 2


@pytest.mark.parametrize("vocab", [5000, 40_003, 151_936])
def test_draws_from_large_vocabularies_are_those_of_the_reference(isa: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    count = 200_000 // vocab + 20
    assert compare(isa, random_plan(rng, count, vocab), random_rows(rng, count, vocab)) <= 2


@pytest.mark.slow
def test_ten_thousand_draws_are_those_of_the_reference(isa: str) -> None:
    rng = np.random.default_rng(5)
    near = 0
    for vocab in rng.choice([1, 3, 50, 1000, 4097, 32_000], 400):
        near += compare(isa, random_plan(rng, 25, int(vocab)), random_rows(rng, 25, int(vocab)))
    assert near <= 20


def test_a_draw_gives_the_same_bytes_alone_and_in_any_company(isa: str) -> None:
    rng = np.random.default_rng(3)
    plan, logits = random_plan(rng, 40, 3001), random_rows(rng, 40, 3001)
    plan = replace(plan, history_start=plan.history_start * 0, bias_start=plan.bias_start * 0)
    tokens, _, top = native_draw(isa, plan, logits)
    per_draw = [name for name, value in vars(plan).items() if len(value) == 40 and not name.endswith("tokens")]
    order = rng.permutation(40)
    shuffled = replace(plan, **{name: getattr(plan, name)[order] for name in per_draw})
    again, _, top_again = native_draw(isa, shuffled, logits)
    assert tokens[order].tobytes() == again.tobytes()
    assert top.logprobs[order].tobytes() == top_again.logprobs.tobytes()
    for s in range(40):
        alone = replace(plan, **{name: getattr(plan, name)[s : s + 1] for name in per_draw})
        alone = replace(alone, history_start=plan.history_start[:2], bias_start=plan.bias_start[:2])
        token, _, logprobs = native_draw(isa, alone, logits)
        assert token[0] == tokens[s]
        assert logprobs.logprobs.tobytes() == top.logprobs[s : s + 1].tobytes()


def test_ids_outside_the_vocabulary_are_ignored(isa: str) -> None:
    rng = np.random.default_rng(9)
    plan, logits = random_plan(rng, 60, 100), random_rows(rng, 60, 100)
    plan.bias_tokens[::3] = 100
    plan.bias_tokens[1::5] = -1
    plan.history_tokens[::2] = 2**31 - 1
    compare(isa, plan, logits)


def test_the_comparison_notices_a_filter_that_is_off_by_one(isa: str) -> None:
    rng = np.random.default_rng(1)
    plan = replace(random_plan(rng, 60, 300), top_k=np.full(60, 2, np.int32), temperature=np.full(60, 2.5, np.float32))
    logits = random_rows(rng, 60, 300)
    tokens, failed, _ = native_draw(isa, replace(plan, top_k=plan.top_k + 1), logits)
    drawn = [s for s in range(60) if not failed[s]]
    assert any(tokens[s] not in neighbours(plan, s, logits[plan.rows[s]]) for s in drawn)
