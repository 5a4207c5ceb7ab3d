"""Writing any Checkpoint as a GGUF file that llama.cpp opens: weights, shape, tokenizer and chat template in one.

    F32 F16 BF16       every matrix so
    Q8_0 Q4_0          every matrix so
    Q4_K_M             Q4_K; Q6_K for half of the v and down matrices, for the head, and for an embedding that is one

Vectors are float32 always. A row whose length is no multiple of the block's takes the next finer type it fits. Tensors
pass through some rows at a time. This file knows nothing of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.checkpoint import Checkpoint, Tensor
from kvik.checkpoint.formats.gguf.layouts import BY_NAME, BlockType
from kvik.checkpoint.formats.gguf.pack import pack
from kvik.checkpoint.formats.gguf.writer import Planned, write_file
from kvik.checkpoint.gguf_names import ARCHITECTURES, ROPE_FACTORS, gguf_name, heads_in_pairs, rows_to_pairs
from kvik.checkpoint.gguf_spec import write_gguf_spec
from kvik.checkpoint.gguf_vocab_write import read_vocabulary, special_ids
from kvik.checkpoint.spec import DecoderSpec
from kvik.errors import CheckpointError
from kvik.step import Float32

KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "BF16": 32}
"""What can be written, with the number of `general.file_type`."""
_FINER = {"Q4_K": "Q8_0", "Q6_K": "Q8_0", "Q4_0": "F16", "Q8_0": "F16"}
_ROWS = 1 << 22
"""Weights taken at a time, about."""


def write_gguf(path: str | Path, checkpoint: Checkpoint, kind: str = "Q4_K_M", *, pre: str | None = None) -> None:
    """Write a model, in place of a file that is there. Its tokenizer comes from the checkpoint's directory; one without
    a directory is written without. `pre`: see `read_vocabulary`.

    Raises CheckpointError, UnsupportedModelError for what cannot be written; nothing is then left behind.
    """
    spec, target = checkpoint.spec, Path(path)
    if kind not in KINDS:
        raise CheckpointError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    shape, factors = write_gguf_spec(spec, str(path))
    metadata: dict[str, Any] = {
        "general.architecture": ARCHITECTURES[spec.family],
        "general.name": Path(checkpoint.name).name,
        "general.file_type": KINDS[kind],
        "general.quantization_version": 2,
        **shape,
    }
    if checkpoint.directory is None:
        metadata |= {"tokenizer.ggml.model": "none", **special_ids(spec)}
    else:
        metadata |= read_vocabulary(checkpoint.directory, spec, pre)
    tensors = [_planned(checkpoint, name, kind) for name in spec.tensor_shapes()]
    if factors is not None:
        tensors.append(Planned(ROPE_FACTORS, BY_NAME["F32"], factors.shape, lambda: [factors]))
    write_file(target, metadata, tensors)


def type_of(name: str, shape: tuple[int, ...], kind: str, spec: DecoderSpec) -> BlockType:
    """The element type of a weight in a file of this kind."""
    if len(shape) == 1:
        return BY_NAME["F32"]
    chosen = _mixed(name, spec) if kind == "Q4_K_M" else kind
    while shape[-1] % BY_NAME[chosen].elements:
        chosen = _FINER[chosen]
    return BY_NAME[chosen]


def _mixed(name: str, spec: DecoderSpec) -> str:
    """Q6_K for what most suffers from four bits: the head, and v and down in the first and last eighth of the layers
    and every third in between, as llama.cpp has it.
    """
    if name == "head" or (name == "embed" and spec.tied_head):
        return "Q6_K"
    if name.rpartition(".")[2] not in ("v", "down"):
        return "Q4_K"
    layer, eighth = int(name.split(".")[1]), spec.num_layers // 8
    more = layer < eighth or layer >= 7 * spec.num_layers // 8 or (layer - eighth) % 3 == 2
    return "Q6_K" if more else "Q4_K"


def _planned(checkpoint: Checkpoint, name: str, kind: str) -> Planned:
    shape = checkpoint.spec.tensor_shapes()[name]
    written = type_of(name, shape, kind, checkpoint.spec)

    def make() -> Iterator[NDArray[Any]]:
        for values in _pieces(checkpoint, name):
            yield pack(values, written, f"{checkpoint.name}: weight {name}")
        checkpoint.release(name)

    return Planned(gguf_name(name), written, shape, make)


def _pieces(checkpoint: Checkpoint, name: str) -> Iterator[Float32]:
    """The weight as float32, some rows at a time, in the order that the file has them."""
    tensor, spec = checkpoint.tensor(name), checkpoint.spec
    rows = tensor.shape[0]
    heads = heads_in_pairs(spec, name)
    order = rows_to_pairs(heads, spec.head_dim) if heads else np.arange(rows)
    plain = tensor.data if isinstance(tensor, Tensor) else tensor.float32()
    form = tensor.dtype if isinstance(tensor, Tensor) else "f32"
    step = max(1, _ROWS * rows // max(plain.size, 1))
    for at in range(0, rows, step):
        part = order[at : at + step]
        yield Tensor(name, form, plain[part] if heads else plain[at : at + step]).float32()
