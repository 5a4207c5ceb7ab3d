"""Memory of a GPU: running out of it as an error that says what to lower, and how much is free.

This file knows nothing of models or plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kvik.errors import NotEnoughMemoryError


@contextmanager
def no_memory_as_error(what: str, remedy: str) -> Iterator[None]:
    """Turns torch's out-of-memory error into one that names the thing and the remedy. Raises NotEnoughMemoryError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).split(". ")[0]
        raise NotEnoughMemoryError(f"{what} do not fit on the GPU ({first}): {remedy}") from None


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on the GPU for this process: those of the device, and those that torch holds unused."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)
