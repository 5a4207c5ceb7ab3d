"""From options to a working engine: opens the checkpoint, chooses the runner, loads, and wires the rooms together.

The only file that knows which concrete parts there are.
"""

from __future__ import annotations

from kvik.checkpoint import open_checkpoint
from kvik.checkpoint.checkpoint import Checkpoint
from kvik.config import EngineConfig
from kvik.engine.engine import Engine
from kvik.engine.free_memory import available_memory
from kvik.engine.memory import MemoryPlan, ModelFigures, plan_memory
from kvik.errors import ConfigError
from kvik.runners.choose import create_runner
from kvik.text.tokenizer import Tokenizer


def build_engine(config: EngineConfig) -> Engine:
    """An engine with its model loaded. Memory is planned before a weight is read, and again when they are there.

    Raises ConfigError, CheckpointError, NotEnoughMemoryError, BackendError.
    """
    checkpoint = open_model(config)
    tokenizer = Tokenizer.from_directory(checkpoint.directory) if checkpoint.directory else None
    runner = create_runner(config)
    try:
        plan_checkpoint(checkpoint, config, runner.name)
        runner.load(checkpoint)
        return Engine(config, checkpoint, runner, tokenizer)
    except BaseException:
        runner.close()
        raise


def open_model(config: EngineConfig) -> Checkpoint:
    """The checkpoint that the options name. Raises ConfigError when they name none."""
    if not config.model.model:
        raise ConfigError(
            "model is not given, and this build has no model in the box; expected a directory, a hub id or dummy:NAME, "
            "such as dummy:qwen3-0.6b"
        )
    return open_checkpoint(config.model.model, seed=config.runner.seed)


def plan_checkpoint(checkpoint: Checkpoint, config: EngineConfig, backend: str) -> MemoryPlan:
    """The memory plan of a model that is not loaded. Raises ConfigError, NotEnoughMemoryError."""
    figures = ModelFigures.of_spec(checkpoint.name, checkpoint.spec, config, backend)
    return plan_memory(figures, available_memory(), config)
