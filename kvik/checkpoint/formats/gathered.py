"""Tensors by name over several files of one format.

What one file is, and how a tensor is taken from it, is the format's own affair. This file knows nothing of formats or
of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from kvik.checkpoint.files import shown
from kvik.errors import CheckpointError

EntryT = TypeVar("EntryT", covariant=True)


class TensorFile(Protocol[EntryT]):
    """One file of tensors."""

    @property
    def path(self) -> Path: ...

    @property
    def entries(self) -> Mapping[str, EntryT]: ...

    def release(self, name: str) -> None:
        """Give a tensor's pages back to the operating system."""


FileT = TypeVar("FileT", bound=TensorFile[object])


class Gathered(Generic[FileT]):
    """Which file holds each tensor."""

    def __init__(self, files: Sequence[FileT]) -> None:
        """Gather the tensors. Raises CheckpointError if two files hold one name."""
        self._file_of: dict[str, FileT] = {}
        for file in files:
            for name in file.entries:
                if name in self._file_of:
                    raise CheckpointError(f"{file.path}: tensor {shown(name)} is in {self.path(name).name} too")
                self._file_of[name] = file

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def names(self) -> list[str]:
        """Every tensor of every file."""
        return list(self._file_of)

    def path(self, name: str) -> Path:
        """The file that holds this tensor."""
        return self._file_of[name].path

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the operating system."""
        self._file_of[name].release(name)
