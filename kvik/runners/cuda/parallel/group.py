"""Ranks that exchange tensors through torch.distributed: NCCL between GPUs, gloo on a CPU; and commands from rank 0.

Ranks find each other through a file in a private folder, so that no port or name is fixed. Commands travel beside the
tensors, always through gloo and host memory: a few integers, and bytes whose meaning is the receiver's affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from pathlib import Path

import torch
import torch.distributed as dist

IDLE = timedelta(days=30)
"""A rank may wait this long for its next command."""
STEP = timedelta(seconds=120)
"""NCCL gives a sum up after this long."""


class Command(IntEnum):
    """What rank 0 asks all ranks to do."""

    STOP = 0
    ALLOCATE = 1
    RUN = 2
    LOGITS = 3
    FREE = 4
    PEAK = 5


@dataclass(frozen=True)
class Group:
    """This rank among `size`; a `Ranks`."""

    rank: int
    size: int
    tensors: dist.ProcessGroup

    def add_up(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        dist.all_reduce(x, group=self.tensors)
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """What all ranks have, side by side along the last axis."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.tensors)
        return torch.cat(parts, dim=-1)

    def least(self, number: int) -> int:
        """The least of what all ranks have."""
        return self._reduced(number, dist.ReduceOp.MIN)

    def most(self, number: int) -> int:
        """The greatest of what all ranks have."""
        return self._reduced(number, dist.ReduceOp.MAX)

    def _reduced(self, number: int, how: dist.ReduceOp.RedOpType) -> int:
        there = torch.tensor([number], dtype=torch.int64)
        dist.all_reduce(there, op=how)
        return int(there)

    def wait(self) -> None:
        """Until all ranks are here."""
        dist.barrier()

    def send(self, command: Command, *numbers: int, data: bytes = b"") -> None:
        """From rank 0 to all others: a command, two numbers at most, and bytes."""
        header = [int(command), *numbers, *[0] * (2 - len(numbers)), len(data)]
        dist.broadcast(torch.tensor(header, dtype=torch.int64), src=0)
        if data:
            dist.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), src=0)

    def receive(self) -> tuple[Command, tuple[int, int], bytes]:
        """The next command that rank 0 sends."""
        header = torch.zeros(4, dtype=torch.int64)
        dist.broadcast(header, src=0)
        command, first, second, length = header.tolist()
        data = torch.empty(length, dtype=torch.uint8)
        if length:
            dist.broadcast(data, src=0)
        return Command(command), (first, second), data.numpy().tobytes()


def join(folder: Path, rank: int, size: int, device: str) -> Group:
    """Meet the other ranks in this folder. Blocks until all are there."""
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=size, timeout=IDLE)
    if device == "cuda":
        tensors = dist.new_group(backend="nccl", timeout=STEP)
    else:
        tensors = dist.group.WORLD
    assert isinstance(tensors, dist.ProcessGroup)
    return Group(rank, size, tensors)


def leave() -> None:
    """End this process's part in the group, if it has one."""
    if dist.is_initialized():
        dist.destroy_process_group()
