"""Writing one GGUF file (version 3): metadata, the table, then the tensors one by one as they are made.

The file grows under another name beside its own and takes its name when it is whole, so that nobody ever opens half a
model. This file knows nothing of models.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.formats.gguf.file import ALIGNMENT, MAGIC
from kvik.checkpoint.formats.gguf.layouts import BlockType
from kvik.checkpoint.formats.gguf.metadata import ARRAY, BOOL, STRING
from kvik.errors import CheckpointError

_VERSION = 3
_U32, _I32, _F32, _U64, _I64 = 4, 5, 6, 10, 11


@dataclass(frozen=True)
class Planned:
    """A tensor to be written. `make` gives its elements or blocks, in pieces that follow one another."""

    name: str
    kind: BlockType
    shape: tuple[int, ...]
    make: Callable[[], Iterable[NDArray[Any]]]

    @property
    def size(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape[:-1]) * self.kind.row_bytes(self.shape[-1])


def write_file(path: Path, metadata: dict[str, Any], tensors: Sequence[Planned]) -> None:
    """Write a file, in place of one that is there. Raises CheckpointError if that fails; nothing is then left.

    Metadata are bool, int, float, str, and lists of one of them; whole numbers are written as u32 where they fit,
    those in lists as i32, fractions as f32.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            _write(file, metadata, tensors)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _write(file: BinaryIO, metadata: dict[str, Any], tensors: Sequence[Planned]) -> None:
    file.write(MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        for part in (_string(key), *_value(key, value)):
            file.write(part)
    for part in _table(tensors):
        file.write(part)
    file.write(bytes(-file.tell() % ALIGNMENT))
    for tensor in tensors:
        start = file.tell()
        for piece in tensor.make():
            file.write(np.ascontiguousarray(piece).view(np.uint8).data)
        if file.tell() - start != tensor.size:
            raise CheckpointError(f"tensor {tensor.name} came to {file.tell() - start} bytes; expected {tensor.size}")
        file.write(bytes(-file.tell() % ALIGNMENT))


def _table(tensors: Sequence[Planned]) -> Iterator[bytes]:
    offset = 0
    for tensor in tensors:
        shape = tensor.shape[::-1]
        yield _string(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        yield struct.pack("<IQ", tensor.kind.number, offset)
        offset += tensor.size + -tensor.size % ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> Iterator[bytes]:
    if isinstance(value, list):
        kind, form = _array_type(key, value)
        yield struct.pack("<IIQ", ARRAY, kind, len(value))
        yield b"".join(map(_string, value)) if kind == STRING else struct.pack(f"<{len(value)}{form}", *value)
    elif isinstance(value, str):
        yield struct.pack("<I", STRING) + _string(value)
    elif isinstance(value, bool):
        yield struct.pack("<IB", BOOL, value)
    elif isinstance(value, int):
        kind, form = _whole_type(value)
        yield struct.pack(f"<I{form}", kind, value)
    elif isinstance(value, float):
        yield struct.pack("<If", _F32, value)
    else:
        raise CheckpointError(f"metadata {key} is a {type(value).__name__}; expected bool, int, float, str or a list")


def _whole_type(value: int) -> tuple[int, str]:
    if value < 0:
        return (_I32, "i") if value >= -(2**31) else (_I64, "q")
    return (_U32, "I") if value < 2**32 else (_U64, "Q")


def _array_type(key: str, values: list[Any]) -> tuple[int, str]:
    for kind, form, python in ((STRING, "", str), (BOOL, "?", bool), (_I32, "i", int), (_F32, "f", float)):
        if all(type(value) is python for value in values):
            return kind, form
    raise CheckpointError(f"metadata {key} is a list of several types; expected one")
