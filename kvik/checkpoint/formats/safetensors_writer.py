"""Writing safetensors: a header from names, types and shapes, then the tensors one at a time.

A file is written beside its place and moved there when it is whole, so that a full disk or an interruption leaves none
that is half written. This file knows nothing of models.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.formats.safetensors import BITS
from kvik.errors import CheckpointError

Described = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type (as safetensors spells it) and shape by name, in the order in which they are written."""


def write_safetensors(path: Path, entries: Described, read: Callable[[str], NDArray[Any]]) -> None:
    """Write the tensors that `read` gives, each when its turn comes. If that fails, raises CheckpointError and leaves
    nothing.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        with aside.open("wb") as file:
            file.write(_header(entries))
            for name, (dtype, shape) in entries.items():
                file.write(_octets(name, read(name), math.prod(shape) * BITS[dtype] // 8))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


def entry_bytes(entries: Described) -> int:
    """Bytes of data."""
    return sum(math.prod(shape) * BITS[dtype] // 8 for dtype, shape in entries.values())


def _octets(name: str, data: NDArray[Any], expected: int) -> memoryview:
    if data.nbytes != expected:
        raise CheckpointError(f"tensor {name} has {data.nbytes} bytes; expected {expected}")
    return np.ascontiguousarray(data).data


def _header(entries: Described) -> bytes:
    """Length and JSON, padded with spaces so that the data begins on 8 bytes."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, (dtype, shape) in entries.items():
        end = begin + math.prod(shape) * BITS[dtype] // 8
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
