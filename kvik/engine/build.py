"""From options to a working engine: opens the checkpoint, chooses the runner, loads, and wires the rooms together.

The only file that knows which concrete parts there are.
"""

from __future__ import annotations

from kvik.checkpoint import FakeCheckpoint, GgufCheckpoint, open_checkpoint
from kvik.checkpoint.checkpoint import Checkpoint
from kvik.config import EngineConfig
from kvik.engine.engine import Engine
from kvik.engine.free_memory import available_memory
from kvik.engine.memory import MemoryPlan, ModelFigures, plan_memory
from kvik.runners.choose import create_runner
from kvik.runners.fake import fake_tokenizer
from kvik.runners.runner import OwnMemory
from kvik.text.described import described_tokenizer
from kvik.text.tokenizer import Tokenizer


def build_engine(config: EngineConfig) -> Engine:
    """An engine with its model loaded. Memory is planned before a weight is read, and again when they are there; only
    then for a runner with memory of its own.

    Raises ConfigError, CheckpointError, NotEnoughMemoryError, BackendError.
    """
    checkpoint = open_model(config)
    tokenizer = open_tokenizer(checkpoint)
    runner = create_runner(config)
    try:
        if not isinstance(runner, OwnMemory):
            plan_checkpoint(checkpoint, config, runner.name)
        runner.load(checkpoint)
        return Engine(config, checkpoint, runner, tokenizer)
    except BaseException:
        runner.close()
        raise


def open_model(config: EngineConfig) -> Checkpoint:
    """The checkpoint that the options name; the model in the box where they name none."""
    return open_checkpoint(config.model.model, seed=config.runner.seed)


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """A model's tokenizer; None for one without text, such as a dummy. Raises CheckpointError."""
    if isinstance(checkpoint, FakeCheckpoint):
        return fake_tokenizer()
    if isinstance(checkpoint, GgufCheckpoint):
        files = checkpoint.tokenizer_files()
        return described_tokenizer(checkpoint.name, files) if files is not None else None
    return Tokenizer.from_directory(checkpoint.directory) if checkpoint.directory else None


def plan_checkpoint(
    checkpoint: Checkpoint, config: EngineConfig, backend: str, available: int | None = None
) -> MemoryPlan:
    """The memory plan of a model that is not loaded, in so many bytes, or in what is free on the host.

    Raises ConfigError, NotEnoughMemoryError.
    """
    figures = ModelFigures.of_checkpoint(checkpoint, config, backend)
    return plan_memory(figures, available_memory() if available is None else available, config)
