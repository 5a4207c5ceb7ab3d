"""What a child process does: load its share of the model, then whatever rank 0 says, until it says stop or is gone.

Every rank runs every plan as a whole, its draws included, so that nothing has to come back: the sums between ranks keep
them in step. A plan that is refused is refused by all. Any other error ends the process, which rank 0 sees.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvik.checkpoint import open_checkpoint
from kvik.config import RunnerOptions
from kvik.runners.cuda.parallel.group import Command, Group, join, leave
from kvik.runners.cuda.parallel.wire import from_bytes
from kvik.runners.cuda.runner import CudaRunner


def serve(folder: str, rank: int, size: int, device: str, model: str, settings: str) -> None:
    """A child's whole life. `settings` is JSON: {"options": of RunnerOptions, "forms": of CudaRunner, "threads"}."""
    import torch

    told = json.loads(settings)
    if device == "cpu":
        torch.set_num_threads(1)
    group = join(Path(folder), rank, size, device)
    try:
        runner = make(told, device, group)
        runner.load(open_checkpoint(json.loads(model), seed=runner.seed))
        group.wait()
        follow(group, runner)
    finally:
        leave()


def make(told: dict[str, Any], device: str, group: Group) -> CudaRunner:
    """This rank's runner."""
    return CudaRunner(RunnerOptions(**told["options"]), device=device, ranks=group, **told["forms"])


def follow(group: Group, runner: CudaRunner) -> None:
    """Do as rank 0 says until it says stop."""
    while True:
        command, numbers, data = group.receive()
        if command is Command.STOP:
            return
        try:
            obey(group, runner, command, numbers, data)
        except ValueError:
            continue  # a plan that rank 0 refuses in the same way, before anything was sent


def obey(group: Group, runner: CudaRunner, command: Command, numbers: tuple[int, int], data: bytes) -> None:
    """One command but STOP, as rank 0 does it at the same time."""
    if command is Command.ALLOCATE:
        runner.allocate(*numbers)
    elif command is Command.RUN:
        runner.run(from_bytes(data))
    elif command is Command.LOGITS:
        runner.logits(from_bytes(data))
    elif command is Command.FREE:
        group.least(runner.free_memory())
    else:
        group.most(runner.peak_bytes(*numbers))
