"""Small schedulers and requests, and a step whose tokens the test chooses. Knows nothing of models."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvik.config import SchedulerOptions
from kvik.request import Request, SamplingParams
from kvik.scheduler import Scheduler, check_invariants
from kvik.step import StepPlan, StepResult, TopLogprobs


def new_scheduler(
    *,
    num_blocks: int = 16,
    block_size: int = 4,
    max_model_len: int = 64,
    prefix_caching: bool = True,
    **options: Any,
) -> Scheduler:
    return Scheduler(
        SchedulerOptions(**options),
        num_blocks=num_blocks,
        block_size=block_size,
        max_model_len=max_model_len,
        prefix_caching=prefix_caching,
    )


def new_request(key: int, prompt: int | list[int], *, total: int | None = None, **fields: Any) -> Request:
    """A request of a prompt (or of so many tokens, its own), at most `total` tokens long, with fields of
    SamplingParams or Request.
    """
    tokens = [100 * (key + 1) + i for i in range(prompt)] if isinstance(prompt, int) else list(prompt)
    own = {name: fields.pop(name) for name in ("stop_ids", "seed", "priority", "salt", "arrival") if name in fields}
    params = SamplingParams(**{"max_tokens": 64, **fields})
    limit = total or len(tokens) + (params.max_tokens or 64)
    return Request(key, tokens, len(tokens), params, limit, **{"arrival": key, **own})


def result_of(plan: StepPlan, token: int = 7, failed: tuple[int, ...] = ()) -> StepResult:
    """Every draw is `token`, but those of the `failed` keys find NaN. Log-probabilities count down from -1."""
    draws, entries = len(plan.sample), len(plan.score)
    bad = np.isin(plan.sample.keys, failed)
    return StepResult(
        np.where(bad, -1, token).astype(np.int32), bad, sampled=logprob_table(draws), scored=logprob_table(entries)
    )


def logprob_table(count: int) -> TopLogprobs:
    ids = np.tile(np.array([1, 2, -1], np.int32), (count, 1))
    values = np.tile(np.array([-0.5, -1.5, 0.0], np.float32), (count, 1))
    return TopLogprobs(-1.0 - np.arange(count, dtype=np.float32), ids, values)


def step(scheduler: Scheduler, token: int = 7, failed: tuple[int, ...] = ()) -> tuple[StepPlan, list[Request]]:
    """One step, and the books checked after it."""
    plan = scheduler.plan()
    touched = scheduler.commit(plan, result_of(plan, token, failed))
    check_invariants(scheduler)
    return plan, touched


def scheduled(plan: StepPlan) -> dict[int, int]:
    """Tokens of each row, by key."""
    return dict(zip(plan.keys.tolist(), np.diff(plan.query_start_loc).tolist(), strict=True))
