"""Opening a model's files: one clear error for whatever is wrong, and JSON that cannot lie.

Python's json keeps the last of two equal keys and reads numbers of any length; a file that decides how gigabytes are
interpreted gets neither freedom. This file knows nothing of what the JSON means.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
from pathlib import Path
from typing import Any, BinaryIO

from kvik.errors import CheckpointError

MAX_JSON_BYTES = 100_000_000
"""Largest config, index or header that is parsed; the safetensors format sets the same limit."""
MAX_DIGITS = 20
"""Longest whole number read from JSON; 2**64 has twenty digits."""


def shown(value: object) -> str:
    """A value as it appears in an error message: its repr, cut short where it is long."""
    cutter = reprlib.Repr()
    cutter.maxstring = cutter.maxother = 80
    return cutter.repr(value)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises CheckpointError if it is missing, no regular file, or may not be read."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{path} is a directory; expected a file")
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path} is not a regular file; expected one")
        return path.open("rb")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is no path: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError for anything else, or more than MAX_JSON_BYTES."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_JSON_BYTES:
                raise CheckpointError(f"{path} has {size} bytes; expected JSON of at most {MAX_JSON_BYTES}")
            data = file.read(size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_object(data, str(path))


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse UTF-8 JSON whose top level is an object. Raises CheckpointError that begins with `where`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{where} is not valid JSON: {reason}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a JSON {type(value).__name__}; expected an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {shown(key)} appears twice")
            seen.add(key)
    return table


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits; expected at most {MAX_DIGITS}")
    return int(text)
