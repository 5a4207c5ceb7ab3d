"""GGUF files byte by byte, for the tests beside this file: what they say need not be true."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


def value(kind: int, content: Any) -> bytes:
    """A value behind its type; an array is (element type, list) or (element type, list, stated count)."""
    if kind == STRING:
        return struct.pack("<I", kind) + text(content)
    if kind == ARRAY:
        element, items, *stated = content
        parts = [text(item) if element == STRING else struct.pack("<" + FORMS[element], item) for item in items]
        return struct.pack("<IIQ", kind, element, *(stated or [len(items)])) + b"".join(parts)
    return struct.pack("<I" + FORMS[kind], kind, content)


def tensor(name: str | bytes, shape: list[int], kind: int, offset: int) -> bytes:
    """A row of the table; `shape` in the file's order, the fastest dimension first."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def image(
    keys: list[bytes] = (),  # type: ignore[assignment]
    tensors: list[bytes] = (),  # type: ignore[assignment]
    data: bytes = b"",
    *,
    counts: tuple[int, int] | None = None,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A file: `counts` are the stated numbers of tensors and keys, if they are not the true ones."""
    number, stated = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, number, stated) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def write(directory: Path, data: bytes, name: str = "model.gguf") -> Path:
    path = directory / name
    path.write_bytes(data)
    return path
