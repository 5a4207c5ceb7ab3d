"""Drawing on the device against the numpy definition: the same tokens and log-probabilities for the same logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvik.runners.reference import sampling
from kvik.step import SamplePlan, ScorePlan, as_int32

torch = pytest.importorskip("torch")

from kvik.runners.cuda.draw_edits import edits_of  # noqa: E402
from kvik.runners.cuda.sampling import CHUNK, Sampler, inverse_cdf, order_keys  # noqa: E402
from kvik.runners.cuda.uniform import uniforms  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NEAR = 1e-5
"""Sums and exponentials round differently, so a draw this near to a boundary may fall to the other side."""


def plan_of(count: int, **fields: Any) -> SamplePlan:
    """Greedy draws without anything, but for these fields."""
    plain: dict[str, Any] = {
        "rows": np.arange(count, dtype=np.int32),
        "keys": np.arange(count),
        "temperature": np.zeros(count, np.float32),
        "top_k": np.zeros(count, np.int32),
        "top_p": np.ones(count, np.float32),
        "min_p": np.zeros(count, np.float32),
        "repetition_penalty": np.ones(count, np.float32),
        "presence_penalty": np.zeros(count, np.float32),
        "frequency_penalty": np.zeros(count, np.float32),
        "seeds": np.arange(count, dtype=np.uint64),
        "positions": np.arange(count),
        "num_logprobs": np.full(count, -1, np.int32),
        "bias_start": np.zeros(count + 1, np.int32),
        "history_start": np.zeros(count + 1, np.int32),
        "history_prompt": np.zeros(count, np.int32),
    }
    return SamplePlan(**(plain | fields))


def random_plan(rng: np.random.Generator, count: int, vocab: int) -> SamplePlan:
    """Every parameter with its edge values, masks, biases and histories with repeated tokens among them."""

    def pick(*values: float) -> Any:
        return rng.choice(np.float32(values), count)

    lists = [np.concatenate([[0], np.cumsum(rng.integers(0, most, count))]).astype(np.int32) for most in (5, 40)]
    biases, history = (rng.integers(0, vocab // 20, starts[-1]).astype(np.int32) for starts in lists)
    return plan_of(
        count,
        temperature=pick(0, 0.1, 0.6, 1, 1, 2.5, 100),
        top_k=rng.choice(as_int32([0, 0, 1, 2, 20, 500, 60000]), count),
        top_p=pick(1, 1, 0.999, 0.9, 0.1, 1e-9),
        min_p=pick(0, 0, 0, 1e-6, 0.02, 0.3, 1),
        repetition_penalty=pick(1, 1.1, 2, 0.7),
        presence_penalty=pick(0, 0.5, -2),
        frequency_penalty=pick(0, 0.3, -0.1),
        seeds=rng.integers(0, 2**64, count, dtype=np.uint64),
        positions=rng.integers(0, 2**40, count),
        num_logprobs=rng.choice(as_int32([-1, 0, 1, 5]), count),
        bias_start=lists[0],
        bias_tokens=biases,
        bias_values=rng.choice(np.float32([-np.inf, 3, -1.5, 100]), len(biases)),
        history_start=lists[1],
        history_tokens=history,
        history_prompt=as_int32([rng.integers(0, n + 1) for n in np.diff(lists[1])]),
        mask_index=rng.integers(-1, 2, count).astype(np.int32),
        masks=rng.integers(0, 2**32, (2, vocab // 32 - 1), dtype=np.uint32),
    )


def random_logits(rng: np.random.Generator, count: int, vocab: int) -> np.ndarray:
    """Peaked, flat, full of ties, with -inf, with zeros of both signs, and now and then broken."""
    rows = (rng.standard_normal((count, vocab)) * rng.choice([0.01, 1, 3, 8, 1e4], (count, 1))).astype(np.float32)
    rows[::5] = rng.choice(np.float32([-1, -0.0, 0, 0.5]), rows[::5].shape)
    rows[1::7, ::2] = -np.inf
    rows[3::11, 2] = np.nan
    rows[4::13, 1] = np.inf
    return rows


def neighbours(plan: SamplePlan, s: int, logits: np.ndarray) -> set[int]:
    """What draw s gives when its uniform number, top_p or min_p moves by at most NEAR."""
    found = set()
    values = sampling.adjusted(plan, s, logits)
    u = sampling.uniform(int(plan.seeds[s]), int(plan.positions[s]))
    for by in (1 - NEAR, 1, 1 + NEAR):
        moved = replace(plan, top_p=plan.top_p * np.float32(by), min_p=plan.min_p * np.float32(by))
        weight = sampling.weights(moved, s, values)
        first, last = (sampling.inverse_cdf(weight, min(max(u + off, 0), 1)) for off in (-NEAR, NEAR))
        found |= {i for i in range(first, last + 1) if weight[i] > 0}
    return found


@np.errstate(over="ignore", invalid="ignore")
@pytest.mark.parametrize("seed", range(6))
def test_random_plans_give_the_tokens_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, vocab = 40, (64, 1500, 1536)[seed % 3]
    plan, logits = random_plan(rng, count, vocab), random_logits(rng, count, vocab)
    expected, failed, top = sampling.draw(plan, logits)
    tokens, ours_failed, ours = Sampler(DEVICE).draw(plan, torch.from_numpy(logits).to(DEVICE))
    assert (ours_failed == failed).all()
    near = [s for s in np.flatnonzero(tokens != expected).tolist() if int(tokens[s]) in neighbours(plan, s, logits[s])]
    assert near == np.flatnonzero(tokens != expected).tolist()
    assert len(near) <= 2
    same = tokens == expected
    assert np.allclose(ours.logprobs[same], top.logprobs[same], rtol=1e-5, atol=1e-5)
    assert (ours.top_ids == top.top_ids).all()
    assert np.allclose(ours.top_logprobs, top.top_logprobs, rtol=1e-5, atol=1e-5)


def test_uniform_numbers_are_the_references() -> None:
    rng = np.random.default_rng(0)
    seeds = np.concatenate([rng.integers(0, 2**64, 50, dtype=np.uint64), np.uint64([0, 2**64 - 1])])
    positions = np.concatenate([rng.integers(0, 2**62, 50), [0, 2**33]])
    expected = [sampling.uniform(int(seed), int(position)) for seed, position in zip(seeds, positions, strict=True)]
    assert uniforms(seeds, positions).tolist() == expected


def test_keys_rank_as_the_definition_ranks() -> None:
    logits = np.float32([[0.0, -0.0, 3, 3, -np.inf, 1e-42, -1e-42, -7, -7, np.inf]])
    keys = order_keys(torch.from_numpy(logits))[0]
    assert keys.argsort(descending=True).tolist() == sampling.ranking(logits[0]).tolist()


@pytest.mark.parametrize("u", [0.0, 0.25, 0.5, 0.75, 1 - 2**-24])
def test_no_token_of_weight_zero_is_drawn_at_any_edge(u: float) -> None:
    weight = torch.zeros(1, 3 * CHUNK + 7)
    weight[0, [5, CHUNK - 1, CHUNK, 3 * CHUNK]] = 0.25
    assert inverse_cdf(weight, torch.tensor([u], dtype=torch.float64)).item() == sampling.inverse_cdf(
        weight[0].numpy(), u
    )


def test_a_mask_ends_where_its_words_end() -> None:
    masks = np.full((1, 1), 2**32 - 1, np.uint32)
    plan = plan_of(2, mask_index=as_int32([-1, 0]), masks=masks)
    logits = torch.arange(80.0).repeat(2, 1)
    assert Sampler(torch.device("cpu")).draw(plan, logits)[0].tolist() == [79, 31]


def test_a_bias_given_twice_is_added_twice() -> None:
    plan = plan_of(
        1, bias_start=as_int32([0, 3]), bias_tokens=as_int32([4, 4, 900]), bias_values=np.float32([2.0, 2.0, 50.0])
    )
    assert Sampler(torch.device("cpu")).draw(plan, torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0]]))[0].tolist() == [4]


def test_a_greedy_step_makes_no_list_of_changes() -> None:
    assert edits_of(plan_of(3), 10) is None


def test_a_draw_whose_every_token_is_banned_fails_alone() -> None:
    plan = plan_of(
        2, bias_start=as_int32([0, 0, 2]), bias_tokens=as_int32([0, 1]), bias_values=np.float32([-np.inf, -np.inf])
    )
    tokens, failed, _ = Sampler(torch.device("cpu")).draw(plan, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert (tokens.tolist(), failed.tolist()) == ([1, -1], [False, True])


def test_no_draws_and_no_scores() -> None:
    tokens, failed, top = Sampler(torch.device("cpu")).draw(SamplePlan(), torch.zeros(0, 5))
    assert (len(tokens), len(failed), top.top_ids.shape) == (0, 0, (0, 0))
    assert len(Sampler(torch.device("cpu")).score(ScorePlan(), torch.zeros(0, 5)).logprobs) == 0


def test_scores_are_the_definitions() -> None:
    rng = np.random.default_rng(1)
    logits = random_logits(rng, 12, 100)
    plan = ScorePlan(as_int32(range(12)), as_int32(range(12)), as_int32([0, 1, 3] * 4))
    with np.errstate(all="ignore"):
        expected = sampling.score(plan, logits)
    ours = Sampler(DEVICE).score(plan, torch.from_numpy(logits).to(DEVICE))
    assert np.allclose(ours.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert (ours.top_ids == expected.top_ids).all()
