"""The metadata of a GGUF file: keys with typed values, read with a cursor that never runs past the end.

    key        u64 length, UTF-8
    type       u32
    value      a number, a byte of 0 or 1, a string (u64 length, bytes), or an array (u32 type, u64 count, elements)

Counts and lengths come from outside: each is held against the bytes that are left before anything is taken. Arrays
stay in the file: numbers as views, strings as `Strings`, so that reading takes no more memory than the keys do.
This file knows nothing of what a key means.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvik.checkpoint.files import shown
from kvik.errors import CheckpointError

MAX_KEY_BYTES = 65535
MAX_STRING_BYTES = 64 << 20
"""Of a single value; chat templates and whole tokenizers are the longest."""
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
"""Types of numbers, as `struct` spells them."""
BOOL, STRING, ARRAY = 7, 8, 9
_LENGTH = struct.Struct("<Q")


class Cursor:
    """A place in a mapped file."""

    def __init__(self, path: Path, data: mmap.mmap | bytes, at: int = 0) -> None:
        self.path, self.data, self.at = path, data, at

    def skip(self, count: int, what: str) -> int:
        """Move past `count` bytes and return where they begin. Raises CheckpointError if they are not there."""
        left = len(self.data) - self.at
        if count > left:
            raise CheckpointError(f"{self.path}: {what} takes {count} bytes at byte {self.at}, but {left} are left")
        self.at += count
        return self.at - count

    def number(self, form: str, what: str) -> Any:
        """One number, `form` as in `struct`."""
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form), what))[0]

    def count(self, least_bytes: int, what: str, limit: int | None = None) -> int:
        """A count of things that take at least so many bytes each, and so fit what is left. Raises CheckpointError."""
        count = int(self.number("<Q", what))
        if limit is not None and count > limit:
            raise CheckpointError(f"{self.path}: {what} is {count}; expected at most {limit}")
        if count * least_bytes > len(self.data) - self.at:
            left = len(self.data) - self.at
            raise CheckpointError(f"{self.path}: {what} is {count}, but only {left} bytes are left")
        return count

    def string(self, limit: int, what: str) -> str:
        """A string of at most `limit` bytes. Raises CheckpointError for one that is longer or no UTF-8."""
        length = int(self.number("<Q", f"the length of {what}"))
        if length > limit:
            raise CheckpointError(f"{self.path}: {what} has {length} bytes; expected at most {limit}")
        return self.text(self.skip(length, what), length, what)

    def text(self, start: int, length: int, what: str) -> str:
        """The UTF-8 text of these bytes."""
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {what} is no UTF-8: {error}") from error


class Strings:
    """An array of strings that are still in the file; decoded as they are iterated over."""

    def __init__(self, cursor: Cursor, count: int, what: str) -> None:
        """Walk over `count` strings, moving the cursor past them. Raises CheckpointError."""
        self._cursor, self._start, self._count, self._what = cursor, cursor.at, count, what
        data, at, size = cursor.data, cursor.at, len(cursor.data)
        unpack = _LENGTH.unpack_from
        for index in range(count):
            length = unpack(data, at)[0] if at + 8 <= size else size
            if length > MAX_STRING_BYTES or at + 8 + length > size:
                raise CheckpointError(
                    f"{cursor.path}: string {index} of {what} has {length} bytes, but {max(size - at - 8, 0)} are left "
                    f"(and {MAX_STRING_BYTES} allowed)"
                )
            at += 8 + length
        cursor.at = at

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        """Raises CheckpointError for a string that is no UTF-8."""
        cursor, at = self._cursor, self._start
        for index in range(self._count):
            length = _LENGTH.unpack_from(cursor.data, at)[0]
            yield cursor.text(at + 8, length, f"string {index} of {self._what}")
            at += 8 + length

    def __repr__(self) -> str:
        return f"<{self._count} strings>"


def read_metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    """`count` keys with their values: int, float, bool, str, numpy array (a view of the file) or Strings.

    Raises CheckpointError naming the key at fault.
    """
    values: dict[str, Any] = {}
    for index in range(count):
        key = cursor.string(MAX_KEY_BYTES, f"metadata key {index}")
        if key in values:
            raise CheckpointError(f"{cursor.path}: metadata key {shown(key)} appears twice")
        kind = cursor.number("<I", f"the type of metadata {shown(key)}")
        values[key] = _read_value(cursor, kind, f"metadata {shown(key)}")
    return values


def _read_value(cursor: Cursor, kind: int, what: str) -> Any:
    if kind in NUMBERS:
        return cursor.number(NUMBERS[kind], what)
    if kind == BOOL:
        value = cursor.number("<B", what)
        if value > 1:
            raise CheckpointError(f"{cursor.path}: {what} is a boolean of {value}; expected 0 or 1")
        return bool(value)
    if kind == STRING:
        return cursor.string(MAX_STRING_BYTES, what)
    if kind == ARRAY:
        return _read_array(cursor, what)
    raise CheckpointError(f"{cursor.path}: {what} has type {kind}; expected 0 to 12")


def _read_array(cursor: Cursor, what: str) -> Any:
    kind = cursor.number("<I", f"the element type of {what}")
    if kind == STRING:
        return Strings(cursor, cursor.count(8, f"the length of {what}"), what)
    if kind != BOOL and kind not in NUMBERS:
        raise CheckpointError(f"{cursor.path}: {what} has elements of type {kind}; expected numbers or strings")
    dtype = np.dtype("?" if kind == BOOL else NUMBERS[kind])
    count = cursor.count(dtype.itemsize, f"the length of {what}")
    start = cursor.skip(count * dtype.itemsize, what)
    if kind == BOOL and count and np.frombuffer(cursor.data, np.uint8, count, start).max() > 1:
        raise CheckpointError(f"{cursor.path}: {what} has a boolean that is neither 0 nor 1")
    return np.frombuffer(cursor.data, dtype, count, start) if count else np.empty(0, dtype)
