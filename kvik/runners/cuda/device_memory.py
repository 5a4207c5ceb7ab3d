"""Memory where tensors lie: how much is free, what a piece of work takes at most, and errors of the device as Kvik's.

On a GPU torch's allocator keeps the count. The CPU device, which is for tests, has the host's figures, roughly. This
file knows nothing of models or plans.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from kvik.errors import NotEnoughMemoryError, RunnerGoneError


@contextmanager
def device_errors(what: str, remedy: str) -> Iterator[None]:
    """Turns torch's out-of-memory error into one that names the thing and the remedy, and an error after which a GPU
    does nothing more for this process into the end of the runner. Raises NotEnoughMemoryError, RunnerGoneError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).split(". ")[0]
        raise NotEnoughMemoryError(f"{what} do not fit on the GPU ({first}): {remedy}") from None
    except torch.AcceleratorError as error:
        first = str(error).splitlines()[0]
        raise RunnerGoneError(f"the GPU failed with {what} ({first}): restart the engine") from error


class DeviceMemory(Protocol):
    """The count of a device's memory."""

    def free(self) -> int:
        """Bytes this process may still take."""

    def peak(self, work: Callable[[], object]) -> int:
        """Do the work; the most bytes that it held at once beyond what was held before."""


@dataclass(frozen=True)
class GpuMemory:
    """What CUDA and torch's allocator say."""

    device: torch.device

    def free(self) -> int:
        """Bytes of the device that nobody holds; what torch holds unused is given back first."""
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free)

    def peak(self, work: Callable[[], object]) -> int:
        """By torch's allocator; what libraries take beside it counts as taken once it is there."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return int(torch.cuda.max_memory_allocated(self.device)) - before


@dataclass(frozen=True)
class HostMemory:
    """Rough figures of this process, for the CPU device."""

    def free(self) -> int:
        """Physical memory that is free."""
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def peak(self, work: Callable[[], object]) -> int:
        """By how much the work raised the most that this process ever held."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def memory_of(device: torch.device) -> DeviceMemory:
    """The count for a device."""
    return GpuMemory(device) if device.type == "cuda" else HostMemory()
