"""All weights of a directory, whether they lie in one safetensors file or in many with an index.

The index is `model.safetensors.index.json` with `{"weight_map": {tensor: file}}`. Its file names come from outside, so
a name that could leave the directory is refused before it is joined to anything. This file knows nothing of models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kvik.checkpoint.files import read_json, shown
from kvik.checkpoint.formats.gathered import Gathered
from kvik.checkpoint.formats.safetensors import Entry, SafetensorsFile
from kvik.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Weights(Gathered[SafetensorsFile]):
    """Tensors by name, over all files."""

    def entry(self, name: str) -> Entry:
        """Type, shape and place of this tensor."""
        return self._file_of[name].entries[name]

    def array(self, name: str) -> NDArray[Any]:
        """A read-only view; see `SafetensorsFile.array`."""
        return self._file_of[name].array(name)

    def integers(self, name: str) -> NDArray[Any]:
        """A read-only view of whole numbers; see `SafetensorsFile.integers`."""
        return self._file_of[name].integers(name)


def open_weights(directory: Path) -> Weights:
    """Open `model.safetensors`, or else the files its index names. Raises CheckpointError."""
    if (directory / SINGLE).exists():
        return Weights([SafetensorsFile(directory / SINGLE)])
    if (directory / INDEX).exists():
        return _open_shards(directory, read_weight_map(directory / INDEX))
    raise CheckpointError(f"{directory} holds no weights; expected {SINGLE}, or {INDEX} and the files it names")


def read_weight_map(path: Path) -> dict[str, str]:
    """Tensor name to file name. Raises CheckpointError unless every file name is a plain `*.safetensors` name."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map is {shown(weight_map)}; expected an object from tensor to file name")
    for name, shard in weight_map.items():
        if not _is_plain_name(shard):
            raise CheckpointError(
                f"{path}: tensor {shown(name)} is in {shown(shard)}; expected the name of a .safetensors file beside it"
            )
    return weight_map


def _is_plain_name(shard: object) -> bool:
    return (
        isinstance(shard, str)
        and shard.endswith(".safetensors")
        and not shard.startswith(".")
        and not any(character in "/\\:" or ord(character) < 32 for character in shard)
    )


def _open_shards(directory: Path, weight_map: dict[str, str]) -> Weights:
    files = {}
    for name, shard in weight_map.items():
        if shard not in files:
            try:
                files[shard] = SafetensorsFile(directory / shard)
            except CheckpointError as error:
                raise CheckpointError(f"{error} ({INDEX} names it for tensor {shown(name)})") from error
        if name not in files[shard].entries:
            raise CheckpointError(f"{directory / shard}: no tensor {shown(name)}, which {INDEX} says it holds")
    return Weights(list(files.values()))
