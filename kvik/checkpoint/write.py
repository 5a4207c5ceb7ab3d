"""Writing a checkpoint in Hugging Face layout: config.json and safetensors, single or sharded.

For tests and tools: any Checkpoint, a dummy one included, becomes a directory that other programs open. Tensors pass
through one at a time. This file knows nothing of where they come from.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.families import FAMILIES, read_spec
from kvik.checkpoint.families.decoder import Family
from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.formats.shards import INDEX, SINGLE
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.spec import DecoderSpec
from kvik.checkpoint.stored import stored_form
from kvik.errors import CheckpointError

_STORED: dict[str, tuple[str, np.dtype[Any]]] = {
    "bf16": ("BF16", np.dtype("<u2")),
    "f16": ("F16", np.dtype("<f2")),
    "f32": ("F32", np.dtype("<f4")),
}


def write_checkpoint(checkpoint: Checkpoint, directory: str | Path, *, max_shard_bytes: int | None = None) -> None:
    """Write config.json and the weights into a directory, made if it is not there.

    `max_shard_bytes` splits the weights into files of at most that much data (a tensor is never split). Raises
    CheckpointError if a config is there already, if the family's config cannot say what the spec says, if a weight is
    quantized, or if writing fails.
    """
    path = Path(directory)
    config = config_of(checkpoint.spec)
    _refuse_quantized(checkpoint)
    shards = _shards(checkpoint.spec, max_shard_bytes)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if (path / "config.json").exists():
            raise CheckpointError(f"{path} holds a config.json already; expected an empty or new directory")
        _write_weights(checkpoint, shards, path)
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    for name in checkpoint.spec.tensor_shapes():
        stored = stored_form(checkpoint, name)
        if stored.is_quantized:
            raise CheckpointError(f"{checkpoint.name}: weight {name} is {stored.dtype}; expected a plain one")


def config_of(spec: DecoderSpec) -> dict[str, Any]:
    """The config.json of a spec; read back, it gives the same spec. Raises CheckpointError if it would not."""
    family = _family(spec)
    config = {"architectures": [family.architecture], "model_type": family.name, **family.write(spec)}
    told = replace(read_spec(Fields("config.json", config)), dtype=spec.dtype)
    expected = replace(spec, sliding_window=spec.sliding_window if any(spec.sliding_window) else ())
    if told != expected:
        raise CheckpointError(f"a {family.name} config cannot say {expected}; it would say {told}")
    return config


def _family(spec: DecoderSpec) -> Family:
    if spec.family not in FAMILIES:
        raise CheckpointError(f"family is {spec.family!r}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[spec.family]


def _shards(spec: DecoderSpec, limit: int | None) -> list[dict[str, tuple[int, ...]]]:
    """The canonical shapes, in order, divided where the next tensor would pass the limit."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    itemsize, used = _STORED[spec.dtype][1].itemsize, 0
    for name, shape in spec.tensor_shapes().items():
        size = math.prod(shape) * itemsize
        if limit is not None and shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    return shards


def _write_weights(checkpoint: Checkpoint, shards: list[dict[str, tuple[int, ...]]], path: Path) -> None:
    tensor_name = _family(checkpoint.spec).tensor_name
    if len(shards) == 1:
        _write_file(checkpoint, shards[0], path / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(checkpoint, shapes, path / file)
        weight_map |= {tensor_name(name): file for name in shapes}
    total = sum(math.prod(shape) for shapes in shards for shape in shapes.values())
    total_size = total * _STORED[checkpoint.spec.dtype][1].itemsize
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (path / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    with path.open("wb") as file:
        header = _header(checkpoint.spec, shapes)
        file.write(len(header).to_bytes(8, "little") + header)
        stored = _STORED[checkpoint.spec.dtype][1]
        for name, shape in shapes.items():
            tensor = checkpoint.tensor(name)
            if isinstance(tensor, QuantizedTensor):
                raise CheckpointError(f"{checkpoint.name}: weight {name} is {tensor.dtype}; expected a plain one")
            if tensor.shape != shape or tensor.dtype != checkpoint.spec.dtype:
                raise CheckpointError(
                    f"{checkpoint.name}: weight {name} is {tensor.dtype} {list(tensor.shape)}; "
                    f"expected {checkpoint.spec.dtype} {list(shape)}"
                )
            file.write(np.ascontiguousarray(tensor.data, stored).data)
            checkpoint.release(name)


def _header(spec: DecoderSpec, shapes: dict[str, tuple[int, ...]]) -> bytes:
    """The safetensors header, padded with spaces so that the data begins on 8 bytes."""
    family, (dtype, stored) = _family(spec), _STORED[spec.dtype]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        end = begin + math.prod(shape) * stored.itemsize
        entries[family.tensor_name(name)] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
