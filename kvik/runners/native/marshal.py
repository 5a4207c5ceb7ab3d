"""Turning a StepPlan into the structs the library reads, and its answers into a StepResult.

No array is copied on the way down; room for the answer is allocated here and filled by the library. This file knows
nothing of models.
"""

from __future__ import annotations

import ctypes as c
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.runners.native.library import (
    MASK_ARRAYS,
    PLAN_ARRAYS,
    SAMPLE_ARRAYS,
    SCORE_ARRAYS,
    PlanStruct,
    ResultStruct,
    SampleStruct,
    address,
    fill,
)
from kvik.step import Float32, Int32, SamplePlan, StepPlan, StepResult, TopLogprobs


def sample_struct(plan: SamplePlan) -> Any:
    """SampleStruct pointing into the plan's arrays."""
    struct = SampleStruct()
    _fill_sample(struct, plan)
    return struct


def _fill_sample(struct: Any, plan: SamplePlan) -> None:
    struct.num_draws = len(plan)
    if len(plan):
        fill(struct, SAMPLE_ARRAYS, plan)
    if len(plan.masks):
        struct.num_masks, struct.mask_words = plan.masks.shape
        fill(struct, MASK_ARRAYS, plan)


def plan_struct(plan: StepPlan) -> Any:
    """PlanStruct pointing into the plan's arrays, which must outlive it."""
    struct = PlanStruct()
    struct.num_rows, struct.num_tokens = plan.num_rows, plan.num_tokens
    struct.num_copies, struct.table_width = len(plan.copies), plan.block_tables.shape[1]
    fill(struct, PLAN_ARRAYS, plan)
    _fill_sample(struct.sample, plan.sample)
    struct.score.num_scores = len(plan.score)
    if len(plan.score):
        fill(struct.score, SCORE_ARRAYS, plan.score)
    return struct


def _room_for_top(struct: Any, count: int, wanted: Int32) -> TopLogprobs:
    width = max(int(wanted.max(initial=0)), 0)
    top = TopLogprobs(
        np.zeros(count, np.float32), np.full((count, width), -1, np.int32), np.zeros((count, width), np.float32)
    )
    struct.width = width
    fill(struct, ("logprobs", "top_ids", "top_logprobs"), top)
    return top


class Answer:
    """Room for what a step produces: `struct` to pass down, then `result()`."""

    def __init__(self, plan: StepPlan, logits: Float32 | None = None) -> None:
        self.struct = ResultStruct()
        self._token_ids: Int32 = np.full(len(plan.sample), -1, np.int32)
        self._failed: NDArray[np.uint8] = np.zeros(len(plan.sample), np.uint8)
        self.struct.token_ids, self.struct.failed = address(self._token_ids), address(self._failed)
        self._sampled = _room_for_top(self.struct.sampled, len(plan.sample), plan.sample.num_logprobs)
        self._scored = _room_for_top(self.struct.scored, len(plan.score), plan.score.num_top)
        self.struct.logits = address(logits) if logits is not None else None

    def result(self) -> StepResult:
        """What the library wrote."""
        return StepResult(self._token_ids, self._failed.view(np.bool_), self._sampled, self._scored)

    def pointer(self) -> Any:
        return c.byref(self.struct)
