"""FakeRunner: the fake model behind the Runner protocol.

It copies blocks, writes every token into its slot and reads whole rows back, as a real runner does, and draws what
`oracle.py` says if the books were right. Steps take the time that was set, and faults strike on command (`faults.py`).
Temperature only tells 0 from the rest; top_p, top_k, min_p, penalties and small biases change nothing; a mask is
obeyed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint import fake
from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.fake import FakeCheckpoint, FakeOptions
from kvik.config import EngineConfig
from kvik.errors import BackendError, ConfigError
from kvik.runners.fake import draw
from kvik.runners.fake.cache import Computed, FakeCache
from kvik.runners.fake.faults import EXIT_STATUS, SLOW_S, Fault
from kvik.runners.runner import KernelChoice, MemoryUse
from kvik.step import Float32, StepPlan, StepResult, TopLogprobs


class FakeRunner:
    """A Runner that loads FakeCheckpoints.

    `clock`, in seconds, and `sleep` measure and pass the time of steps; `leave` ends the process.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._clock, self._sleep, self._leave = clock, sleep, leave
        self._options: FakeOptions | None = None
        self._cache: FakeCache | None = None

    @classmethod
    def of_config(cls, config: EngineConfig) -> FakeRunner:
        """Raises BackendError, ConfigError for options that ask for a form or a backend."""
        for name, options in (("backend", config.runner), ("isa", config.runner)):
            if (value := getattr(options, name)) != "auto":
                raise BackendError(f"{name} is {value!r}; expected auto for a fake model, which has its own runner")
        for name, value in (("weights", config.model.weights), ("kv_dtype", config.cache.kv_dtype)):
            if value != "auto":
                raise ConfigError(f"{name} is {value!r}; expected auto for a fake model, which has neither form")
        return cls()

    @property
    def name(self) -> str:
        return "fake"

    @property
    def vocab_size(self) -> int:
        return fake.VOCAB_SIZE

    def load(self, checkpoint: Checkpoint) -> None:
        """Take the model's options. Raises BackendError for a model that is not fake."""
        if not isinstance(checkpoint, FakeCheckpoint):
            raise BackendError(f"{checkpoint.name} is no fake model; expected {fake.PREFIX} with parameters")
        self._options, self._cache = checkpoint.options, None

    def kv_bytes_per_token(self) -> int:
        return fake.KV_BYTES_PER_TOKEN

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Reserve blocks 0 .. num_blocks - 1, zeroed."""
        self._cache = FakeCache(num_blocks, block_size, self._loaded().max_model_len)

    def run(self, plan: StepPlan) -> StepResult:
        """Copy blocks, compute every row, let faults strike, then draw and score. Takes at least the time set."""
        started, options = self._clock(), self._loaded()
        computed = self._compute(plan)
        failing, late = self._strike(plan, computed)
        after = computed.contexts.take(computed.last[plan.sample.rows])
        tokens = draw.draw(plan.sample, after, options)
        failed: NDArray[np.bool_] = np.isin(plan.sample.rows, failing) | (tokens < 0)
        tokens[failed] = -1
        sampled = draw.logprobs(after, tokens, plan.sample.num_logprobs, options)
        draw.erase(sampled, failed)
        scored = self._score(plan, computed, failing)
        self._wait(started + options.seconds(plan.num_rows, plan.num_tokens) + late)
        return StepResult(token_ids=tokens, failed=failed, sampled=sampled, scored=scored)

    def _score(self, plan: StepPlan, computed: Computed, failing: list[int]) -> TopLogprobs:
        """Log-probabilities of the plan's targets; those of failing rows are NaN."""
        score = plan.score
        rows = np.searchsorted(plan.query_start_loc, score.indices, side="right") - 1
        contexts = computed.contexts.take(score.indices)
        scored = draw.logprobs(contexts, score.targets, score.num_top, self._loaded())
        draw.erase(scored, np.isin(rows, failing), np.nan)
        return scored

    def logits(self, plan: StepPlan) -> Float32:
        """Logits after every token of the plan, float32 [T, vocab_size]."""
        return draw.logits(self._compute(plan).contexts, self._loaded())

    def memory(self) -> MemoryUse:
        """The arena; pages of it that were never written take no memory."""
        return MemoryUse(weights=0, kv=self._cache.nbytes if self._cache else 0, activations=0)

    def kernels(self) -> KernelChoice:
        return KernelChoice(chosen="fake: no model, only its books")

    def close(self) -> None:
        self._options = self._cache = None

    def _compute(self, plan: StepPlan) -> Computed:
        wrong = plan.token_ids[(plan.token_ids < 0) | (plan.token_ids >= fake.VOCAB_SIZE)]
        if wrong.size:
            raise ValueError(f"the plan holds token id {wrong[0]}; expected 0 to {fake.VOCAB_SIZE - 1}")
        cache = self._allocated()
        cache.copy_blocks(plan.copies)
        return cache.compute(plan)

    def _strike(self, plan: StepPlan, computed: Computed) -> tuple[list[int], float]:
        """Let the faults strike that are due: the rows whose draws fail, and the seconds that the step takes longer."""
        failing: list[int] = []
        late = 0.0
        for row in np.flatnonzero(computed.faults).tolist():
            fault = Fault.of_code(int(computed.faults[row]))
            answered = int(computed.contexts.answered[computed.last[row]])
            if not fault.strikes(draws=row in plan.sample.rows, answered=answered):
                continue
            if fault.kind == "nan":
                failing.append(row)
            elif fault.kind == "slow":
                late += SLOW_S
            else:
                self._break(fault, int(plan.keys[row]))
        return failing, late

    def _break(self, fault: Fault, key: int) -> None:
        """What does not end well."""
        if fault.kind == "hang":
            while True:
                self._sleep(3600.0)
        if fault.kind == "exit":
            self._leave(EXIT_STATUS)
        kind = MemoryError if fault.kind == "oom" else RuntimeError
        raise kind(f"the prompt of request {key} says {fault.spelling}")

    def _wait(self, until: float) -> None:
        rest = until - self._clock()
        if rest > 0:
            self._sleep(rest)

    def _loaded(self) -> FakeOptions:
        if self._options is None:
            raise RuntimeError("the fake runner has no model; call load first")
        return self._options

    def _allocated(self) -> FakeCache:
        if self._cache is None:
            raise RuntimeError("the fake runner has no KV cache; call allocate first")
        return self._cache
