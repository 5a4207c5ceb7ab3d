"""ParallelRunner: rank 0 of several that share one model; to the engine a runner like any other.

It starts the other ranks as child processes, sends them what it is asked, and takes part itself. If one of them dies
nothing more can be computed: every call then raises RunnerGoneError, which says which rank and how.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.errors import EngineError, RunnerGoneError
from kvik.runners.cuda.device_memory import memory_of
from kvik.runners.cuda.parallel.group import Command, Group, join, leave
from kvik.runners.cuda.parallel.rank import make, serve
from kvik.runners.cuda.parallel.wire import to_bytes
from kvik.runners.cuda.ranks import check_divisible
from kvik.runners.cuda.runner import CudaRunner
from kvik.runners.runner import KernelChoice, MemoryUse
from kvik.step import Float32, StepPlan, StepResult

FAREWELL_S = 5.0
"""How long a rank has to end by itself."""
Answer = TypeVar("Answer")


class ParallelRunner:
    """The Runner protocol over `size` ranks. `model` is what the ranks open: as `open_checkpoint` takes it.

    `options` are fields of RunnerOptions, `forms` arguments of CudaRunner; both must be what JSON can hold.
    """

    name = "cuda"

    def __init__(
        self, model: str | None, size: int, options: dict[str, Any], forms: dict[str, Any], *, device: str = "cuda"
    ) -> None:
        self._model, self._size, self._device = model, size, device
        self._told = {"options": options, "forms": forms}
        self._children: list[BaseProcess] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._group: Group | None = None
        self._own: CudaRunner | None = None

    @property
    def vocab_size(self) -> int:
        return self._runner.vocab_size

    def load(self, checkpoint: Checkpoint) -> None:
        """Start the ranks and load a share on each. Raises ConfigError, CheckpointError, RunnerGoneError."""
        self.close()
        check_divisible(checkpoint.spec, self._size)
        self._folder = tempfile.TemporaryDirectory(prefix="kvik-ranks-")
        told = (self._folder.name, self._size, self._device, json.dumps(self._model), json.dumps(self._told))
        context = multiprocessing.get_context("spawn")
        for rank in range(1, self._size):
            child = context.Process(
                target=serve, args=(told[0], rank, *told[1:]), daemon=True, name=f"kvik rank {rank}"
            )
            child.start()
            self._children.append(child)
        with self._all_alive():
            self._group = join(Path(self._folder.name), 0, self._size, self._device)
            self._own = make(self._told, self._device, self._group)
            self._own.load(checkpoint)
            self._group.wait()

    def kv_bytes_per_token(self) -> int:
        """On each rank."""
        return self._runner.kv_bytes_per_token()

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Reserve blocks on every rank. Raises NotEnoughMemoryError, RunnerGoneError."""
        self._together(lambda own, _: own.allocate(num_blocks, block_size), Command.ALLOCATE, num_blocks, block_size)

    def run(self, plan: StepPlan) -> StepResult:
        """As CudaRunner's. Raises RunnerGoneError if a rank has died."""
        self._runner.check(plan)
        return self._together(lambda own, _: own.run(plan), Command.RUN, data=to_bytes(plan))

    def logits(self, plan: StepPlan) -> Float32:
        """Logits after every token of the plan, float32 [T, vocab_size]."""
        self._runner.check(plan)
        return self._together(lambda own, _: own.logits(plan), Command.LOGITS, data=to_bytes(plan))

    def free_memory(self) -> int:
        """Bytes that are free where there are fewest: every rank takes as many blocks. Before `load`, on the devices as
        they are.
        """
        if self._group is None:
            return min(memory_of(torch.device(self._device, rank)).free() for rank in range(self._size))
        return self._together(lambda own, group: group.least(own.free_memory()), Command.FREE)

    def peak_bytes(self, num_tokens: int, num_rows: int) -> int:
        """What the rank that takes most takes, as CudaRunner's."""
        return self._together(
            lambda own, group: group.most(own.peak_bytes(num_tokens, num_rows)), Command.PEAK, num_tokens, num_rows
        )

    def memory(self) -> MemoryUse:
        """Of rank 0; the others hold as much."""
        return self._runner.memory()

    def kernels(self) -> KernelChoice:
        """What rank 0 computes with, and how many ranks there are."""
        chosen = self._own.kernels().chosen if self._own is not None else "cuda: nothing loaded"
        return KernelChoice(f"{chosen}; {self._size} ranks")

    def close(self) -> None:
        """End all ranks. Idempotent."""
        if self._group is not None and all(child.is_alive() for child in self._children):
            with suppress(RuntimeError):  # one may have died just now; all end below
                self._group.send(Command.STOP)
        for child in self._children:
            child.join(FAREWELL_S)
            if child.is_alive():
                child.kill()
                child.join()
        if self._own is not None:
            self._own.close()
        if self._group is not None:
            leave()
        if self._folder is not None:
            self._folder.cleanup()
        self._children, self._folder, self._group, self._own = [], None, None, None

    @property
    def _runner(self) -> CudaRunner:
        if self._own is None:
            raise EngineError("the ranks have no model; call load first")
        return self._own

    def _together(
        self, work: Callable[[CudaRunner, Group], Answer], command: Command, *numbers: int, data: bytes = b""
    ) -> Answer:
        """Tell the others, and do it too."""
        if self._group is None:
            raise EngineError("the ranks have no model; call load first")
        with self._all_alive():
            self._group.send(command, *numbers, data=data)
            return work(self._runner, self._group)

    @contextmanager
    def _all_alive(self) -> Iterator[None]:
        """What goes wrong between ranks because one died is an error that says so. Raises RunnerGoneError."""
        self._refuse_the_dead(0.0)
        try:
            yield
        except RuntimeError:
            self._refuse_the_dead(FAREWELL_S / 5)
            raise

    def _refuse_the_dead(self, patience_s: float) -> None:
        for rank, child in enumerate(self._children, start=1):
            child.join(patience_s)
            if child.exitcode is not None:
                raise RunnerGoneError(
                    f"rank {rank} of {self._size} died with exit status {child.exitcode}; nothing can be computed "
                    "without it: restart the engine"
                )
