"""A model's tensors and metadata, whether they lie in one GGUF file or in parts named `..-00001-of-0000N.gguf`.

The first part has the metadata; every part states its own number, how many there are, and the first how many tensors
all have together. This file knows nothing of models.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kvik.checkpoint.files import shown
from kvik.checkpoint.formats.gathered import Gathered
from kvik.checkpoint.formats.gguf.file import Entry, GgufFile
from kvik.errors import CheckpointError

MAX_PARTS = 9999
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


class GgufParts(Gathered[GgufFile]):
    """Tensors by name, over all files."""

    def __init__(self, files: list[GgufFile]) -> None:
        """Gather the tensors of the first file, which has the metadata, and its others. Raises CheckpointError if two
        hold one name.
        """
        self.metadata = files[0].metadata
        self.first = files[0].path
        super().__init__(files)

    def entry(self, name: str) -> Entry:
        """Type, shape and place of this tensor."""
        return self._file_of[name].entries[name]

    def blocks(self, name: str) -> NDArray[Any]:
        """A read-only view; see `GgufFile.blocks`."""
        return self._file_of[name].blocks(name)


def open_parts(path: Path) -> GgufParts:
    """Open a file, and those that belong to it if it is the first of several. Raises CheckpointError,
    UnsupportedModelError.
    """
    first = GgufFile(path)
    count = _whole(first, "split.count", 0, MAX_PARTS, 0)
    if count < 2:
        return GgufParts([first])
    number = _whole(first, "split.no", 0, count - 1, None)
    match = _PART.fullmatch(path.name)
    if match is None or (int(match[2]), int(match[3])) != (number + 1, count):
        raise CheckpointError(f"{path} says that it is part {number + 1} of {count}; expected a name that says so too")
    if number:
        raise CheckpointError(f"{path} is part {number + 1} of {count}; open {match[1]}-00001-of-{count:05}.gguf")
    files = [
        first,
        *(_open_part(path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf"), i, count) for i in range(2, count + 1)),
    ]
    _check_total(first, files)
    return GgufParts(files)


def _open_part(path: Path, number: int, count: int) -> GgufFile:
    part = GgufFile(path)
    stated = _whole(part, "split.no", 0, MAX_PARTS, None) + 1, _whole(part, "split.count", 0, MAX_PARTS, None)
    if stated != (number, count):
        raise CheckpointError(f"{path} says that it is part {stated[0]} of {stated[1]}; expected {number} of {count}")
    return part


def _check_total(first: GgufFile, files: list[GgufFile]) -> None:
    found = sum(len(file.entries) for file in files)
    if _whole(first, "split.tensors.count", 0, 1 << 31, found) != found:
        stated = first.metadata["split.tensors.count"]
        raise CheckpointError(f"{first.path}: split.tensors.count is {stated}; its {len(files)} parts hold {found}")


def _whole(file: GgufFile, key: str, low: int, high: int, default: int | None) -> int:
    value = file.metadata.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(f"{file.path}: {key} is {shown(value)}; expected a whole number from {low} to {high}")
    return value
