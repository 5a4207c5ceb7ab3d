"""One safetensors file, memory-mapped: its header checked to the letter, its tensors as views without a copy.

    8 bytes    length of the header, little-endian
    header     JSON: {"name": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [begin, end]}, ..}
    data       the tensors, row-major, back to back; offsets count from here

The common library copies, and numpy has no bf16, so this reader is our own: bf16 comes out as uint16 bit patterns.
The header decides what the bytes mean, so nothing in it is believed: see `_parse_entry` and `_check_tiling`. This file
knows nothing of models, shards or directories.
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

from kvik.checkpoint.files import MAX_JSON_BYTES, open_regular, parse_object, shown
from kvik.errors import CheckpointError

BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Every element type of the format, with its size in bits."""
READABLE: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
"""The element types that can be computed with, and the numpy type that holds their bits."""
INTEGERS: dict[str, np.dtype[Any]] = {"I8": np.dtype("i1"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
"""What quantized weights are packed in; read by those who ask for it (`integers`)."""
MAX_DIMENSIONS = 32
_PREFIX = 8


@dataclass(frozen=True)
class Entry:
    """What the header says of one tensor. `start` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """An open file. Views stay valid after the object is gone; a file that is cut short while mapped is not guarded
    against (the operating system ends the process).
    """

    def __init__(self, path: Path) -> None:
        """Map the file and check its header. Raises CheckpointError naming the file and the tensor at fault."""
        self.path = path
        self._map = _map(path)
        self.entries: dict[str, Entry] = _read_header(path, self._map)

    def array(self, name: str) -> NDArray[Any]:
        """A read-only view of one tensor. Raises CheckpointError for an unknown name or an unreadable type."""
        return self._view(name, READABLE)

    def integers(self, name: str) -> NDArray[Any]:
        """As `array`, for int8, int32 and int64."""
        return self._view(name, INTEGERS)

    def _view(self, name: str, readable: dict[str, np.dtype[Any]]) -> NDArray[Any]:
        entry = self._entry(name)
        if entry.dtype not in readable:
            supported = ", ".join(readable)
            raise CheckpointError(
                f"{self.path}: tensor {shown(name)} has dtype {entry.dtype}; expected one of {supported}"
            )
        dtype = readable[entry.dtype]
        count = (entry.end - entry.start) // dtype.itemsize
        if count == 0:
            return np.empty(entry.shape, dtype)
        return np.frombuffer(self._map, dtype, count, entry.start).reshape(entry.shape)

    def release(self, name: str) -> None:
        """Drop the tensor's whole pages from this process; they are read again if they are touched again."""
        entry = self._entry(name)
        start = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = entry.end // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise CheckpointError(f"{self.path}: no tensor {shown(name)}")
        return self.entries[name]


def _map(path: Path) -> mmap.mmap:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < _PREFIX:
            raise CheckpointError(f"{path} has {size} bytes; a safetensors file begins with {_PREFIX} bytes of length")
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be mapped: {error}") from error


def _read_header(path: Path, data: mmap.mmap) -> dict[str, Entry]:
    length = int.from_bytes(data[:_PREFIX], "little")
    if length > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} says its header has {length} bytes; expected at most {MAX_JSON_BYTES}")
    if _PREFIX + length > len(data):
        raise CheckpointError(f"{path} says its header has {length} bytes, but the file ends after {len(data)} bytes")
    header = parse_object(data[_PREFIX : _PREFIX + length], f"{path}: the header")
    header.pop("__metadata__", None)
    begin = _PREFIX + length
    entries = {name: _parse_entry(f"{path}: tensor {shown(name)}", info, begin) for name, info in header.items()}
    _check_tiling(path, entries, begin, len(data))
    return entries


def _parse_entry(where: str, info: object, begin: int) -> Entry:
    """One header entry, checked against itself. Raises CheckpointError that begins with `where`."""
    if not isinstance(info, dict):
        raise CheckpointError(f"{where} is {shown(info)}; expected an object with dtype, shape and data_offsets")
    dtype, shape, offsets = info.get("dtype"), _counts(info.get("shape")), _counts(info.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{where} has dtype {shown(dtype)}; expected one of {', '.join(BITS)}")
    if shape is None or len(shape) > MAX_DIMENSIONS:
        given = shown(info.get("shape"))
        raise CheckpointError(f"{where} has shape {given}; expected up to {MAX_DIMENSIONS} whole numbers from 0")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        given = shown(info.get("data_offsets"))
        raise CheckpointError(f"{where} has data_offsets {given}; expected [begin, end] with begin <= end")
    bits, span = math.prod(shape) * BITS[dtype], offsets[1] - offsets[0]
    if bits != span * 8:
        raise CheckpointError(
            f"{where} spans {span} bytes; {dtype} of shape {shown(list(shape))} takes {-(-bits // 8)}"
        )
    return Entry(dtype, shape, begin + offsets[0], begin + offsets[1])


def _counts(values: object) -> tuple[int, ...] | None:
    """Whole numbers of at least 0, or None if it is anything else."""
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        return None
    return tuple(values)


def _check_tiling(path: Path, entries: dict[str, Entry], begin: int, size: int) -> None:
    """Spans must cover the data area exactly, as the format asks: no overlap, no hole, nothing after the end."""
    reached, previous = begin, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        where = f"{path}: tensor {shown(name)}"
        if entry.end > size:
            raise CheckpointError(f"{where} ends at byte {entry.end}, but the file ends after {size} bytes")
        if entry.start < reached:
            raise CheckpointError(f"{where} overlaps {previous} by {reached - entry.start} bytes")
        if entry.start > reached:
            raise CheckpointError(f"{where} begins {entry.start - reached} bytes after the end of {previous}")
        reached, previous = entry.end, f"tensor {shown(name)}"
    if reached != size:
        raise CheckpointError(f"{path} has {size - reached} bytes after the end of {previous}")
