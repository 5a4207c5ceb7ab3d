"""Two ranks give what one gives, over gloo on the CPU with the model in the box, until one of them dies, and is named.

The ranks are started once: that is what takes the time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

import cuda_bench
import numpy as np
import pytest
from oracle import BLOCK, greedy, max_difference, plan_for, shuffled_tables

from kvik.checkpoint import open_checkpoint
from kvik.errors import ConfigError, EngineError, RunnerGoneError
from kvik.runners.cuda.parallel.runner import ParallelRunner
from kvik.runners.cuda.parallel.wire import from_bytes, to_bytes
from kvik.step import as_int32

PROMPT = [5, 900, 33, 1200, 7, 64, 300, 11, 2048]
FORMS = {"weights": "f32", "kv_dtype": "f32"}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def new_ranks(size: int = 2, model: str | None = None) -> ParallelRunner:
    return ParallelRunner(model, size, {"enforce_eager": True}, FORMS, device="cpu")


def greedy_answer(runner: object, count: int) -> list[int]:
    """The prompt, then `count` tokens, one a step."""
    ids = list(PROMPT)
    tables, num_blocks = shuffled_tables([len(ids) + count], BLOCK)
    runner.allocate(num_blocks, BLOCK)  # type: ignore[attr-defined]
    start = 0
    for _ in range(count):
        plan = plan_for([ids], {0: (start, len(ids))}, tables, sample=greedy([0]))
        start = len(ids)
        ids.append(int(runner.run(plan).token_ids[0]))  # type: ignore[attr-defined]
    return ids[len(PROMPT) :]


def test_two_ranks_answer_as_one_until_one_dies() -> None:
    ranks = new_ranks()
    try:
        assert ranks.free_memory() > 0, "asked of the devices, before a rank is started"
        ranks.load(open_checkpoint(None))
        check_memory(ranks)
        check_answers(ranks)
        check_death(ranks)
    finally:
        ranks.close()


def check_answers(ranks: ParallelRunner) -> None:
    alone = cuda_bench.new_runner()
    alone.load(open_checkpoint(None))
    assert greedy_answer(ranks, 12) == greedy_answer(alone, 12)
    tables, _ = shuffled_tables([len(PROMPT)], BLOCK)
    plan = plan_for([PROMPT], {0: (0, len(PROMPT))}, tables)
    assert max_difference(ranks.logits(plan), alone.logits(plan)) <= 2e-4
    assert ranks.memory().weights < 0.6 * alone.memory().weights + 10**6
    assert ranks.kv_bytes_per_token() * 2 == alone.kv_bytes_per_token()
    plan.token_ids[0] = -1
    with pytest.raises(ValueError, match="token id -1"):
        ranks.run(plan)
    assert greedy_answer(ranks, 2) == greedy_answer(alone, 2), "a refused plan does not disturb the ranks"


@dataclass
class Pretended:
    """The count of rank 0's memory; the other rank has its own."""

    number: int

    def free(self) -> int:
        return self.number

    def peak(self, work: Callable[[], object]) -> int:
        work()
        return self.number


def check_memory(ranks: ParallelRunner) -> None:
    """The least that any rank has free counts, and the most that any takes."""
    own = ranks._runner
    told = own._memory
    for number, least, most in ((-1, True, False), (2**60, False, True)):
        own._memory = Pretended(number)
        assert (ranks.free_memory() == number) is least
        assert (ranks.peak_bytes(16, 3) == number) is most
    own._memory = told


def check_death(ranks: ParallelRunner) -> None:
    os.kill(ranks._children[0].pid or 0, signal.SIGKILL)
    with pytest.raises(RunnerGoneError, match="rank 1 of 2 died with exit status -9"):
        greedy_answer(ranks, 2)
    ranks.close()
    with pytest.raises(EngineError, match="no model"):
        greedy_answer(ranks, 1)


def test_a_model_that_ranks_cannot_share_is_refused_before_any_starts() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size is 3; expected a divisor of the model's 2 KV heads"):
        new_ranks(3).load(open_checkpoint(None))


def test_plans_cross_unchanged() -> None:
    tables, _ = shuffled_tables([40], BLOCK)
    plan = plan_for([list(range(40))], {0: (3, 40)}, tables, copies=[(1, 2)], sample=greedy([0], 3))
    plan = plan.with_masks(as_int32([0]), np.arange(5, dtype=np.uint32)[None])
    other = from_bytes(to_bytes(plan))
    for ours, theirs in ((plan, other), (plan.sample, other.sample), (plan.score, other.score)):
        for name, value in vars(ours).items():
            if isinstance(value, np.ndarray):
                copied = getattr(theirs, name)
                assert (copied.dtype, copied.shape) == (value.dtype, value.shape), name
                assert np.array_equal(copied, value), name
    with pytest.raises(ValueError, match="came in"):
        from_bytes(to_bytes(plan) + b"\0")
