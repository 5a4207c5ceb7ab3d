"""One GGUF file, memory-mapped: metadata and tensor table checked to the letter, tensors as views without a copy.

    4 bytes    "GGUF"
    u32        version: 2 or 3, little-endian
    u64 u64    how many tensors, how many metadata keys
    metadata   see `metadata.py`
    table      per tensor: name, u32 dimensions, u64 each (the fastest first), u32 type, u64 offset
    data       begins at a multiple of the alignment, as each tensor does; offsets count from here

The table decides what the bytes mean, so nothing in it is believed: type, shape, alignment, place and overlap are
checked before anything of the tensor's size exists. This file knows nothing of models or of what blocks hold.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.files import open_regular, shown
from kvik.checkpoint.formats.gguf.layouts import OTHERS, TYPES, BlockType
from kvik.checkpoint.formats.gguf.metadata import Cursor, read_metadata
from kvik.errors import CheckpointError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Where the file states none."""
MAX_ALIGNMENT = 1 << 20
MAX_NAME_BYTES = 127
MAX_ROWS = 1 << 16
"""Tensors and metadata keys of one file: what is made of each is larger than its bytes."""
MAX_DIMENSIONS = 4
_LEAST_KEY, _LEAST_TENSOR = 13, 32
"""Bytes that a metadata key and a row of the table take at least."""


@dataclass(frozen=True)
class Entry:
    """What the table says of one tensor. `start` and `end` are byte offsets in the file."""

    kind: BlockType
    shape: tuple[int, ...]
    """Row-major, as numpy has it: the reverse of the file's order."""
    start: int
    end: int


class GgufFile:
    """An open file. Views stay valid after the object is gone; a file that is cut short while mapped is not guarded
    against (the operating system ends the process).
    """

    def __init__(self, path: Path) -> None:
        """Map the file and check its head. Raises CheckpointError naming file and tensor or key at fault, and
        UnsupportedModelError for an element type that is not done.
        """
        self.path = path
        self._map = _map(path)
        cursor = Cursor(path, self._map)
        tensors, keys = _read_head(cursor)
        self.metadata: dict[str, Any] = read_metadata(cursor, keys)
        alignment = _alignment(path, self.metadata)
        table = _read_table(cursor, tensors)
        self.entries: dict[str, Entry] = _place(path, table, cursor.at, alignment, len(self._map))

    def blocks(self, name: str) -> NDArray[Any]:
        """A read-only view of one tensor: plain elements in its shape, or blocks (see `layouts.py`) in the shape
        whose last dimension counts them. Raises CheckpointError for an unknown name.
        """
        if name not in self.entries:
            raise CheckpointError(f"{self.path}: no tensor {shown(name)}")
        entry = self.entries[name]
        shape = (*entry.shape[:-1], entry.shape[-1] // entry.kind.elements) if entry.shape else ()
        return np.frombuffer(self._map, entry.kind.layout, math.prod(shape), entry.start).reshape(shape)

    def release(self, name: str) -> None:
        """Drop the tensor's whole pages from this process; they are read again if they are touched again."""
        entry = self.entries[name]
        start = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = entry.end // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)


def _map(path: Path) -> mmap.mmap:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < len(MAGIC) + 20:
            raise CheckpointError(f"{path} has {size} bytes; a GGUF file has a head of {len(MAGIC) + 20}")
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be mapped: {error}") from error


def _read_head(cursor: Cursor) -> tuple[int, int]:
    """How many tensors and keys there are."""
    magic = bytes(cursor.data[: len(MAGIC)])
    if magic != MAGIC:
        raise CheckpointError(f"{cursor.path} begins with {magic!r}; expected {MAGIC!r}")
    cursor.skip(len(MAGIC), "the magic")
    version = cursor.number("<I", "the version")
    if version not in VERSIONS:
        hint = " (it is big-endian)" if version & 0xFFFF == 0 and version else ""
        raise UnsupportedModelError(f"{cursor.path} is GGUF version {version}{hint}; supported: 2 and 3, little-endian")
    tensors = cursor.count(_LEAST_TENSOR, "the number of tensors", MAX_ROWS)
    return tensors, cursor.count(_LEAST_KEY, "the number of metadata keys", MAX_ROWS)


def _alignment(path: Path, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        expected = f"a power of two up to {MAX_ALIGNMENT}"
        raise CheckpointError(f"{path}: general.alignment is {shown(value)}; expected {expected}")
    return value


@dataclass(frozen=True)
class _Row:
    """A row of the table, its offset not yet checked."""

    kind: BlockType
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Bytes of data."""
        rows = math.prod(self.shape[:-1])
        return rows * self.kind.row_bytes(self.shape[-1] if self.shape else 1)


def _read_table(cursor: Cursor, count: int) -> dict[str, _Row]:
    table: dict[str, _Row] = {}
    for index in range(count):
        name = cursor.string(MAX_NAME_BYTES, f"the name of tensor {index}")
        if name in table:
            raise CheckpointError(f"{cursor.path}: tensor {shown(name)} appears twice")
        table[name] = _read_row(cursor, f"tensor {shown(name)}")
    return table


def _read_row(cursor: Cursor, what: str) -> _Row:
    dimensions = cursor.number("<I", f"the number of dimensions of {what}")
    if dimensions > MAX_DIMENSIONS:
        raise CheckpointError(f"{cursor.path}: {what} has {dimensions} dimensions; expected at most {MAX_DIMENSIONS}")
    shape = tuple(int(cursor.number("<Q", f"the shape of {what}")) for _ in range(dimensions))[::-1]
    if 0 in shape or math.prod(shape) >= 1 << 62:
        raise CheckpointError(f"{cursor.path}: {what} has shape {list(shape)}; expected 1 to 2**62 elements")
    number = cursor.number("<I", f"the type of {what}")
    if number not in TYPES:
        supported = ", ".join(kind.name for kind in TYPES.values())
        raise UnsupportedModelError(
            f"{cursor.path}: {what} has type {OTHERS.get(number, number)}, which is not supported; supported: "
            f"{supported}"
        )
    kind = TYPES[number]
    if (shape[-1] if shape else 1) % kind.elements:
        raise CheckpointError(
            f"{cursor.path}: {what} has shape {list(shape)}; {kind.name} expects rows of a multiple of {kind.elements}"
        )
    return _Row(kind, shape, int(cursor.number("<Q", f"the offset of {what}")))


def _place(path: Path, table: dict[str, _Row], end: int, alignment: int, size: int) -> dict[str, Entry]:
    """Where the tensors lie, once no two overlap and none leaves the file. `end` is where the table ends."""
    begin = -(-end // alignment) * alignment
    entries: dict[str, Entry] = {}
    reached, previous = begin, "the table"
    for name, row in sorted(table.items(), key=lambda item: item[1].offset):
        what, start = f"{path}: tensor {shown(name)}", begin + row.offset
        if row.offset % alignment:
            raise CheckpointError(f"{what} has offset {row.offset}; expected a multiple of the alignment, {alignment}")
        if start + row.size > size:
            raise CheckpointError(f"{what} ends at byte {start + row.size}, but the file ends after {size} bytes")
        if start < reached:
            raise CheckpointError(f"{what} overlaps {previous} by {reached - start} bytes")
        entries[name] = Entry(row.kind, row.shape, start, start + row.size)
        reached, previous = start + row.size, f"tensor {shown(name)}"
    return {name: entries[name] for name in table}
