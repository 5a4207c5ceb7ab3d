"""When a step raises: run its rows one by one, to find the guilty ones and spare the others.

No row is to blame where the runner itself is gone: that ends the engine (RunnerGoneError).

A row's bytes do not depend on its neighbours, so a row that runs again alone gives what it would have given. Keys and
values of the failed attempt are simply written again; so are block copies, because within a plan nothing is written
to the copied positions of a source. This file knows nothing of requests or of the scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvik.errors import RunnerGoneError
from kvik.runners.runner import Runner
from kvik.step import Float32, Int32, SamplePlan, ScorePlan, StepPlan, StepResult, TopLogprobs

Picked = NDArray[np.intp]

_PER_DRAW = (
    "keys",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seeds",
    "positions",
    "num_logprobs",
)


@dataclass(frozen=True)
class Outcome:
    """What came of a plan."""

    result: StepResult
    """Meaningless if there are faults."""
    faults: dict[int, Exception] = field(default_factory=dict)
    """What each guilty row raised when it ran alone, by request key."""
    isolated: bool = False
    """Whether the plan raised and its rows ran alone."""


def run_isolating(runner: Runner, plan: StepPlan) -> Outcome:
    """Run a plan; if that raises, run each of its rows as a plan of its own, once. A plan without rows is not run.

    Raises RunnerGoneError.
    """
    if not plan.num_rows:
        return Outcome(_merge(plan, []))
    try:
        return Outcome(runner.run(plan))
    except RunnerGoneError:
        raise
    except Exception:
        return _run_rows_alone(runner, plan)


def _run_rows_alone(runner: Runner, plan: StepPlan) -> Outcome:
    parts: list[tuple[Picked, Picked, StepResult]] = []
    faults: dict[int, Exception] = {}
    for row in range(plan.num_rows):
        draws, scores = _draws_of(plan, row), _scores_of(plan, row)
        try:
            parts.append((draws, scores, runner.run(_row_plan(plan, row, draws, scores))))
        except RunnerGoneError:
            raise
        except Exception as error:
            faults[int(plan.keys[row])] = error
    return Outcome(_merge(plan, parts), faults, isolated=True)


def _draws_of(plan: StepPlan, row: int) -> Picked:
    return np.nonzero(plan.sample.rows == row)[0]


def _scores_of(plan: StepPlan, row: int) -> Picked:
    start, end = plan.query_start_loc[row], plan.query_start_loc[row + 1]
    return np.nonzero((plan.score.indices >= start) & (plan.score.indices < end))[0]


def _row_plan(plan: StepPlan, row: int, draws: Picked, scores: Picked) -> StepPlan:
    """The plan of one row: its tokens, the copies into its blocks, its draws and scores."""
    start, end = int(plan.query_start_loc[row]), int(plan.query_start_loc[row + 1])
    table = plan.block_tables[row : row + 1]
    return StepPlan(
        step=plan.step,
        keys=plan.keys[row : row + 1],
        token_ids=plan.token_ids[start:end],
        positions=plan.positions[start:end],
        query_start_loc=np.array([0, end - start], np.int32),
        seq_lens=plan.seq_lens[row : row + 1],
        block_tables=table,
        copies=plan.copies[np.isin(plan.copies[:, 1], table)],
        sample=_pick_draws(plan.sample, draws),
        score=ScorePlan(
            indices=plan.score.indices[scores] - np.int32(start),
            targets=plan.score.targets[scores],
            num_top=plan.score.num_top[scores],
        ),
    )


def _pick_draws(sample: SamplePlan, draws: Picked) -> SamplePlan:
    """The draws of one row, which is now row 0."""
    bias_start, bias = _pick_spans(sample.bias_start, draws)
    history_start, history = _pick_spans(sample.history_start, draws)
    plain = {name: getattr(sample, name)[draws] for name in _PER_DRAW}
    has_history = len(sample.history_prompt) == len(sample)
    has_masks = len(sample.masks) > 0
    return SamplePlan(
        rows=np.zeros(len(draws), np.int32),
        bias_start=bias_start,
        bias_tokens=sample.bias_tokens[bias],
        bias_values=sample.bias_values[bias],
        history_start=history_start,
        history_tokens=sample.history_tokens[history],
        history_prompt=sample.history_prompt[draws] if has_history else sample.history_prompt,
        mask_index=sample.mask_index[draws] if has_masks else sample.mask_index,
        masks=sample.masks,
        **plain,
    )


def _pick_spans(starts: Int32, picked: Picked) -> tuple[Int32, Picked]:
    """Of spans that lie one after another, the picked ones: their new starts, and the indices of their elements."""
    spans = [np.arange(starts[i], starts[i + 1]) for i in picked]
    lengths = np.array([0, *map(len, spans)], np.int32)
    elements = np.concatenate([np.zeros(0, np.intp), *spans]).astype(np.intp)
    return np.cumsum(lengths, dtype=np.int32), elements


def _merge(plan: StepPlan, parts: list[tuple[Picked, Picked, StepResult]]) -> StepResult:
    """The results of single rows, put where the whole plan has their draws and scores."""
    token_ids = np.full(len(plan.sample), -1, np.int32)
    failed = np.ones(len(plan.sample), np.bool_)
    for draws, _, result in parts:
        token_ids[draws] = result.token_ids
        failed[draws] = result.failed
    sampled = [(draws, result.sampled) for draws, _, result in parts]
    scored = [(scores, result.scored) for _, scores, result in parts]
    return StepResult(token_ids, failed, _merge_top(len(plan.sample), sampled), _merge_top(len(plan.score), scored))


def _merge_top(count: int, parts: list[tuple[Picked, TopLogprobs]]) -> TopLogprobs:
    width = max((top.top_ids.shape[1] for _, top in parts), default=0)
    logprobs: Float32 = np.zeros(count, np.float32)
    top_ids: Int32 = np.full((count, width), -1, np.int32)
    top_logprobs: Float32 = np.zeros((count, width), np.float32)
    for places, top in parts:
        if len(top.logprobs) == len(places):
            logprobs[places] = top.logprobs
        if len(top.top_ids) == len(places):
            top_ids[places, : top.top_ids.shape[1]] = top.top_ids
            top_logprobs[places, : top.top_logprobs.shape[1]] = top.top_logprobs
    return TopLogprobs(logprobs, top_ids, top_logprobs)
