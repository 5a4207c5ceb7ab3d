"""Masked draws: the native sampler against numpy's definition, in every instruction set, and what a mask must mean.

A mask comes before every other rule, never changes another draw, and leaves the log-probabilities those of the model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_parity_sampling import NOT_BUILT, compare, native_draw, random_plan, random_rows, runnable

from kvik.runners.reference import sampling
from kvik.step import SamplePlan, as_int32


@pytest.fixture(params=runnable() or [NOT_BUILT])
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def reference_draw(plan: SamplePlan, logits: np.ndarray) -> Any:
    return sampling.draw(plan, logits)


def packed(rows: np.ndarray, words: int) -> np.ndarray:
    """Rows of booleans as masks of so many words."""
    bits = np.zeros((len(rows), words * 32), np.uint8)
    bits[:, : rows.shape[1]] = rows[:, : words * 32]
    return np.packbits(bits, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def with_masks(rng: np.random.Generator, plan: SamplePlan, vocab: int, extra_words: int = 0) -> SamplePlan:
    """Half of the draws get a mask of some density; draws share masks, and some masks belong to nobody."""
    density = rng.choice([0.0, 0.003, 0.1, 0.5, 0.98, 1.0], (9, 1))
    allowed = rng.random((9, vocab)) < density
    allowed[np.arange(9), rng.integers(0, vocab, 9)] |= density[:, 0] > 0
    index = rng.integers(-1, 9, len(plan)) * rng.integers(0, 2, len(plan)) - 1
    return replace(
        plan, mask_index=as_int32(np.clip(index, -1, 8)), masks=packed(allowed, -(-vocab // 32) + extra_words)
    )


@pytest.mark.parametrize("vocab", [1, 5, 31, 32, 33, 300, 1024, 1030, 4096])
def test_masked_draws_are_those_of_the_reference(isa: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    near = 0
    for extra_words in (0, 1, 3):
        plan = with_masks(rng, random_plan(rng, 80, vocab), vocab, extra_words)
        near += compare(isa, plan, random_rows(rng, 80, vocab))
    assert near <= 2


def test_masked_draws_from_a_large_vocabulary_are_those_of_the_reference(isa: str) -> None:
    rng = np.random.default_rng(0)
    plan = with_masks(rng, random_plan(rng, 20, 151_936), 151_936, 1)
    assert compare(isa, plan, random_rows(rng, 20, 151_936)) <= 1


@pytest.mark.slow
def test_ten_thousand_masked_draws_are_those_of_the_reference(isa: str) -> None:
    rng = np.random.default_rng(6)
    near = 0
    for vocab in rng.choice([3, 50, 1000, 4097, 32_000], 400).tolist():
        near += compare(isa, with_masks(rng, random_plan(rng, 25, vocab), vocab), random_rows(rng, 25, vocab))
    assert near <= 20


def samplers() -> list[Any]:
    native = [pytest.param(isa, id=isa) for isa in runnable()] or [NOT_BUILT]
    return [pytest.param("reference", id="reference"), *native]


def draw(name: str, plan: SamplePlan, logits: np.ndarray) -> Any:
    return reference_draw(plan, logits) if name == "reference" else native_draw(name, plan, logits)


@pytest.mark.parametrize("name", samplers())
def test_only_tokens_of_the_mask_are_drawn_whatever_the_rules(name: str) -> None:
    rng = np.random.default_rng(4)
    plan = with_masks(rng, random_plan(rng, 200, 700), 700)
    tokens = draw(name, plan, random_rows(rng, 200, 700))[0]
    masked = [s for s in range(200) if plan.mask_index[s] >= 0 and tokens[s] >= 0]
    assert len(masked) > 30
    for s in masked:
        word = int(plan.masks[plan.mask_index[s], tokens[s] // 32])
        assert word >> (int(tokens[s]) % 32) & 1


@pytest.mark.parametrize("name", samplers())
def test_a_mask_changes_no_other_draw_and_no_log_probability(name: str) -> None:
    rng = np.random.default_rng(8)
    free = replace(random_plan(rng, 60, 500), num_logprobs=np.full(60, 3, np.int32))
    logits = random_rows(rng, 60, 500)
    masked = with_masks(rng, free, 500)
    before, after = draw(name, free, logits), draw(name, masked, logits)
    unmasked = masked.mask_index < 0
    np.testing.assert_array_equal(before[0][unmasked], after[0][unmasked])
    both = (before[0] >= 0) & (after[0] >= 0)
    assert (both & ~unmasked).sum() > 5
    assert before[2].top_ids[both].tobytes() == after[2].top_ids[both].tobytes()
    assert before[2].top_logprobs[both].tobytes() == after[2].top_logprobs[both].tobytes()


@pytest.mark.parametrize("name", samplers())
def test_the_mask_comes_before_top_k_and_an_empty_one_fails_its_draw_alone(name: str) -> None:
    logits = np.tile(np.float32([5, 4, 3, 2, 1]), (3, 1))
    rng = np.random.default_rng(2)
    plan = random_plan(rng, 3, 5)
    plain = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    plan = replace(
        plan,
        **{name: np.full(3, value, np.float32) for name, value in plain.items()},
        top_k=np.ones(3, np.int32),
        bias_start=plan.bias_start * 0,
        history_start=plan.history_start * 0,
        mask_index=as_int32([0, 1, -1]),
        masks=packed(np.array([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], np.bool_), 1),
    )
    tokens, failed, _ = draw(name, plan, logits)
    assert tokens.tolist() == [2, -1, 0]
    assert failed.tolist() == [False, True, False]


def test_the_comparison_notices_a_mask_that_is_ignored(isa: str) -> None:
    rng = np.random.default_rng(3)
    plan, logits = with_masks(rng, random_plan(rng, 80, 300), 300), random_rows(rng, 80, 300)
    ignored = native_draw(isa, replace(plan, mask_index=plan.mask_index * 0 - 1), logits)[0]
    assert (ignored != sampling.draw(plan, logits)[0]).sum() > 10
