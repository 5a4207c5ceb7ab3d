"""The result as a directory in Hugging Face layout: weights from the pieces, config.json, the files beside them.

Layers come from the work folder and all else from the model that was quantized, one tensor at a time. This file knows
nothing of methods.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.checkpoint import Checkpoint, Tensor, float32_to_bf16
from kvik.checkpoint.families import FAMILIES
from kvik.checkpoint.files import read_json
from kvik.checkpoint.formats.layout import Layout
from kvik.checkpoint.formats.safetensors_writer import entry_bytes, write_safetensors
from kvik.checkpoint.formats.shards import INDEX, SINGLE
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.write import config_of
from kvik.errors import CheckpointError
from kvik.quantize.pieces import Arrays, Pieces
from kvik.step import Float32

STORED = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
INTEGERS = {np.dtype(np.int8): "I8", np.dtype(np.int32): "I32", np.dtype(np.int64): "I64"}
BESIDE = ("generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*", "vocab.*", "merges.txt")
"""What is copied along."""
MAX_SHARD_BYTES = 4 << 30
Piece = tuple[tuple[str, tuple[int, ...]], Callable[[], NDArray[Any]]]
"""Type and shape of a tensor, and how to get it."""


def encoded(values: Float32, form: str) -> NDArray[Any]:
    """Float32 as a form stores it."""
    if form == "bf16":
        return float32_to_bf16(values)
    return values.astype(np.float16 if form == "f16" else np.float32)


def layer_arrays(
    checkpoint: Checkpoint,
    layer: int,
    vectors: dict[str, Float32],
    matrices: dict[str, QuantizedTensor],
    layout: Layout,
    scale_form: str,
) -> Arrays:
    """A finished layer by the names in the file. Raises CheckpointError for what the format cannot hold."""
    family, form = FAMILIES[checkpoint.spec.family], checkpoint.spec.dtype
    arrays: dict[str, tuple[str, NDArray[Any]]] = {}
    for name, values in vectors.items():
        arrays[family.tensor_name(f"layers.{layer}.{name}")] = (STORED[form], encoded(values, form))
    for name, tensor in matrices.items():
        module = family.tensor_name(f"layers.{layer}.{name}").removesuffix("weight")
        try:
            parts = layout.write(tensor)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.name}: {module[:-1]} {error}") from error
        for part, data in parts.items():
            if data.dtype == np.float32:
                arrays[module + part] = (STORED[scale_form], encoded(data, scale_form))
            else:
                arrays[module + part] = (INTEGERS[data.dtype], data)
    return arrays


def assemble(checkpoint: Checkpoint, pieces: Pieces, layout: Layout, partial: Path) -> int:
    """Write weights, config and the files beside them into `partial`. Returns the bytes of the weights. Raises
    CheckpointError.
    """
    found = _all_pieces(checkpoint, pieces)
    try:
        _write_weights(found, partial)
        for pattern in BESIDE if checkpoint.directory is not None else ():
            for path in sorted(Path(str(checkpoint.directory)).glob(pattern)):
                if path.is_file():
                    shutil.copyfile(path, partial / path.name)
        config = _config(checkpoint) | {"quantization_config": layout.config()}
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{partial} cannot be written: {error.strerror or error}") from error
    return entry_bytes({name: described for name, (described, _) in found.items()})


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.directory is not None and (checkpoint.directory / "config.json").is_file():
        return read_json(checkpoint.directory / "config.json")
    return config_of(checkpoint.spec)


def _all_pieces(checkpoint: Checkpoint, pieces: Pieces) -> dict[str, Piece]:
    spec, family = checkpoint.spec, FAMILIES[checkpoint.spec.family]
    found: dict[str, Piece] = {}
    for name, shape in spec.tensor_shapes().items():
        if "." not in name:
            described = (STORED[spec.dtype], shape)
            found[family.tensor_name(name)] = (described, lambda name=name: _plain(checkpoint, name))  # type: ignore[misc]
    for layer in range(spec.num_layers):
        file = pieces.open_layer(layer)
        for stored, entry in file.entries.items():
            read = file.array if entry.dtype in STORED.values() else file.integers
            found[stored] = ((entry.dtype, entry.shape), lambda read=read, stored=stored: read(stored))  # type: ignore[misc]
    return found


def _plain(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    tensor = checkpoint.tensor(name)
    assert isinstance(tensor, Tensor)
    return tensor.data


def _write_weights(found: dict[str, Piece], partial: Path) -> None:
    shards: list[dict[str, Piece]] = [{}]
    used = 0
    for name, piece in found.items():
        size = entry_bytes({name: piece[0]})
        if shards[-1] and used + size > MAX_SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][name] = piece
        used += size
    files = [SINGLE] if len(shards) == 1 else [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in _from_1(shards)]
    for file, shard in zip(files, shards, strict=True):
        _write_shard(partial / file, shard)
    if len(shards) > 1:
        total = entry_bytes({name: piece[0] for name, piece in found.items()})
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_shard(path: Path, shard: dict[str, Piece]) -> None:
    write_safetensors(path, {name: piece[0] for name, piece in shard.items()}, lambda name: shard[name][1]())


def _from_1(things: list[Any]) -> range:
    return range(1, len(things) + 1)
