"""The memory plan of a model that a runner has loaded.

On the host, activations are estimated and the system says what is free. A runner with memory of its own is asked for
both, and measures what the largest step takes. This file knows nothing of how either is found out.
"""

from __future__ import annotations

from dataclasses import replace

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.config import EngineConfig
from kvik.engine.free_memory import available_memory
from kvik.engine.memory import MemoryPlan, ModelFigures, plan_memory
from kvik.runners.runner import OwnMemory, Runner


def plan_loaded(checkpoint: Checkpoint, config: EngineConfig, runner: Runner) -> MemoryPlan:
    """Divide what is free beside the weights. Raises ConfigError, NotEnoughMemoryError."""
    figures = ModelFigures.of_runner(checkpoint.name, checkpoint.spec, config, runner)
    if not isinstance(runner, OwnMemory):
        return plan_memory(figures, available_memory(), config)
    most = config.scheduler.max_num_batched_tokens
    peak = runner.peak_bytes(most, min(config.scheduler.max_num_seqs, most))
    return plan_memory(replace(figures, activations=peak), runner.free_memory(), config)
