"""`run` says what `logits` says: draws, scores, and failures that stay with the row they happen in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from oracle import BLOCK, greedy, plan_for, shuffled_tables
from toys import TOYS, ToyCheckpoint, random_checkpoint, token_ids

from kvik.runners.runner import Runner
from kvik.step import Float32, ScorePlan, StepPlan, as_int32

NewRunner = Callable[..., Runner]
SPEC = TOYS["llama-d16-g2-linear"]
PROMPTS = [token_ids(SPEC, length, seed) for seed, length in enumerate((9, 41, 1))]
WHOLE = {key: (0, len(ids)) for key, ids in enumerate(PROMPTS)}
LOGPROB_BOUND = 1e-5


def ready(runner: Runner, checkpoint: ToyCheckpoint | None = None) -> tuple[Runner, partial[StepPlan]]:
    """The loaded runner, and plans over PROMPTS."""
    tables, num_blocks = shuffled_tables([len(ids) for ids in PROMPTS], BLOCK)
    runner.load(checkpoint or random_checkpoint(SPEC))
    runner.allocate(num_blocks, BLOCK)
    return runner, partial(plan_for, PROMPTS, tables=tables)


def log_softmax(logits: Float32) -> np.ndarray:
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))


def ends(plan: StepPlan) -> list[int]:
    return [int(end) - 1 for end in plan.query_start_loc[1:]]


def test_greedy_draws_are_the_largest_logits(new_runner: NewRunner) -> None:
    runner, plan = ready(new_runner())
    expected = runner.logits(plan(spans=WHOLE))[ends(plan(spans=WHOLE))].argmax(axis=1)
    result = runner.run(plan(spans=WHOLE, sample=greedy([2, 0, 1, 0])))
    assert result.token_ids.dtype == np.int32
    assert result.token_ids.tolist() == expected[[2, 0, 1, 0]].tolist()
    assert not result.failed.any()


def test_a_step_may_draw_from_some_rows_or_none(new_runner: NewRunner) -> None:
    runner, plan = ready(new_runner())
    expected = runner.run(plan(spans=WHOLE, sample=greedy([0, 1, 2]))).token_ids
    assert runner.run(plan(spans=WHOLE, sample=greedy([1]))).token_ids.tolist() == [expected[1]]
    nothing = runner.run(plan(spans=WHOLE))
    assert (len(nothing.token_ids), len(nothing.failed)) == (0, 0)


def test_drawn_logprobs_are_those_of_the_logits(new_runner: NewRunner) -> None:
    runner, plan = ready(new_runner())
    exact = log_softmax(runner.logits(plan(spans=WHOLE))[ends(plan(spans=WHOLE))])
    sampled = runner.run(plan(spans=WHOLE, sample=greedy([0, 1, 2], num_logprobs=3))).sampled
    assert np.abs(sampled.logprobs - exact.max(axis=1)).max() <= LOGPROB_BOUND
    assert (sampled.top_ids[:, :3] == np.argsort(-exact, axis=1, kind="stable")[:, :3]).all()
    assert np.abs(sampled.top_logprobs[:, :3] + np.sort(-exact, axis=1)[:, :3]).max() <= LOGPROB_BOUND


def test_scores_are_those_of_the_logits(new_runner: NewRunner) -> None:
    runner, plan = ready(new_runner())
    indices, targets = as_int32([0, 4, 7, 9, 49]), as_int32([5, 0, SPEC.vocab_size - 1, 17, 3])
    exact = log_softmax(runner.logits(plan(spans=WHOLE)))
    asked = ScorePlan(indices=indices, targets=targets, num_top=as_int32([0, 2, 0, 1, 2]))
    scored = runner.run(plan(spans=WHOLE, score=asked)).scored
    assert np.abs(scored.logprobs - exact[indices, targets]).max() <= LOGPROB_BOUND
    likeliest = np.argsort(-exact[indices], axis=1, kind="stable")
    assert scored.top_ids[1, :2].tolist() == likeliest[1, :2].tolist()
    assert scored.top_ids[3].tolist() == [likeliest[3, 0], -1]


POISON = 77
"""A token id that is in no prompt; its embedding is no number."""


def poisoned(value: float) -> ToyCheckpoint:
    sound = random_checkpoint(SPEC)
    embed = sound.weights["embed"].copy()
    embed[POISON, 3] = value
    return sound.with_weights({"embed": embed})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_a_number_fails_alone(value: float, new_runner: NewRunner) -> None:
    runner, plan = ready(new_runner(), poisoned(value))
    sound = runner.run(plan(spans=WHOLE, sample=greedy([0, 1, 2, 1], num_logprobs=2)))
    spoilt = plan(spans=WHOLE, sample=greedy([0, 1, 2, 1], num_logprobs=2))
    spoilt.token_ids[15] = POISON  # the seventh token of prompt 1
    result = runner.run(spoilt)
    assert result.failed.tolist() == [False, True, False, True]
    assert result.token_ids[[1, 3]].tolist() == [-1, -1]
    assert result.token_ids[[0, 2]].tolist() == sound.token_ids[[0, 2]].tolist()
    assert (result.sampled.logprobs[[0, 2]] == sound.sampled.logprobs[[0, 2]]).all()


@pytest.mark.parametrize("form", ["f32", "bf16"])
def test_blocks_of_a_failed_row_serve_the_next_one(form: str, new_runner: NewRunner) -> None:
    """What is masked must not be multiplied in: zero times NaN is NaN."""
    runner, plan = ready(new_runner(weights=form, kv_dtype=form), poisoned(np.nan))
    expected = runner.logits(plan(spans=WHOLE))
    spoilt = plan_for([[POISON] * 32, [POISON] * 64], {0: (0, 32), 1: (0, 64)}, plan.keywords["tables"])
    assert np.isnan(runner.logits(spoilt)).all()
    assert (runner.logits(plan(spans=WHOLE)) == expected).all()
