"""Fixtures of the parity tests.

A test that takes `new_runner` runs once for each kind of runner; each call of it makes one fresh runner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from contenders import make_runner, runner_kinds
from toys import ToyCheckpoint

from kvik.checkpoint import open_checkpoint, write_checkpoint
from kvik.checkpoint.checkpoint import Checkpoint
from kvik.runners.runner import Runner

NewRunner = Callable[..., Runner]


@pytest.fixture(params=runner_kinds())
def new_runner(request: pytest.FixtureRequest) -> Iterator[NewRunner]:
    made: list[Runner] = []

    def new(**options: Any) -> Runner:
        made.append(make_runner(request.param, **options))
        return made[-1]

    yield new
    for runner in made:
        runner.close()


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Keep torch from fighting over the cores, and transformers from talking; both may be absent."""
    try:
        import torch
        import transformers
    except ImportError:
        return
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def on_disk(tmp_path: Any) -> Callable[[ToyCheckpoint], Checkpoint]:
    """Write a toy in Hugging Face layout and open it again, as a user would."""

    def write(checkpoint: ToyCheckpoint) -> Checkpoint:
        write_checkpoint(checkpoint, tmp_path)
        return open_checkpoint(str(tmp_path))

    return write
