"""A GGUF file as a Checkpoint: weights, shape and tokenizer in one, opened and checked, not yet read.

Opening costs as much as walking over the names in it: everything unsupported is refused, then each weight's name and
shape are held against the spec. A weight is unpacked when it is asked for, exactly and alone; what the runner makes of
it is its own affair. This file knows nothing of how weights are computed with, nor of what a tokenizer does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.checkpoint import Tensor
from kvik.checkpoint.files import shown
from kvik.checkpoint.formats.gguf.metadata import Strings
from kvik.checkpoint.formats.gguf.parts import GgufParts, open_parts
from kvik.checkpoint.formats.gguf.unpack import unpack
from kvik.checkpoint.gguf_names import ROPE_FACTORS, gguf_name, heads_in_pairs, rows_from_pairs
from kvik.checkpoint.gguf_spec import read_gguf_spec
from kvik.checkpoint.gguf_vocab import CONTROL, ENDINGS, tokenizer_files
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.spec import DecoderSpec
from kvik.checkpoint.stored import StoredForm, of_block_type
from kvik.errors import CheckpointError
from kvik.step import Float32

EMBED, TOKENS = "token_embd.weight", "tokenizer.ggml.tokens"


class GgufCheckpoint:
    """A GGUF file. Satisfies the `Checkpoint` protocol."""

    def __init__(self, path: str | Path) -> None:
        """Open and check a file, or the first of several parts. Raises CheckpointError (what is wrong where),
        UnsupportedModelError.
        """
        self._path, self._name = Path(path), str(path)
        self._weights = open_parts(self._path)
        if EMBED not in self._weights or len(self._weights.entry(EMBED).shape) != 2:
            raise CheckpointError(f"{path}: tensor {EMBED} is missing or no matrix; a model begins with it")
        metadata, vocab = self._weights.metadata, self._weights.entry(EMBED).shape[0]
        spec = read_gguf_spec(self._name, metadata, self._weights.names(), vocab, self._rope_factors)
        check_complete(spec, self._weights)
        ids = dict.fromkeys((*spec.eos_ids, *_endings(metadata, vocab)))
        self._spec = replace(spec, dtype=_plain_form(self._weights), eos_ids=tuple(ids))

    @property
    def name(self) -> str:
        """The path, as it was given."""
        return self._name

    @property
    def spec(self) -> DecoderSpec:
        """What metadata and weights describe."""
        return self._spec

    @property
    def directory(self) -> None:
        """None: the tokenizer is in the file (`tokenizer_files`)."""
        return

    def tokenizer_files(self) -> dict[str, Any] | None:
        """What the tokenizer's files would say; see `gguf_vocab.tokenizer_files`. None if the file has no tokenizer.
        Raises CheckpointError, UnsupportedModelError.
        """
        found = {key: value for key, value in self._weights.metadata.items() if key.startswith("tokenizer.")}
        plain = {key.removeprefix("tokenizer."): _plain_data(value) for key, value in found.items()}
        return tokenizer_files(self._name, plain, self._spec.eos_ids)

    def tensor(self, name: str) -> Tensor | QuantizedTensor:
        """The weight of this canonical name: a Tensor where it is stored plainly (a view of the memory map, but for
        rows whose order differs), a QuantizedTensor otherwise. Raises CheckpointError, for a step that is NaN or
        infinite too.
        """
        stored = self._stored_name(name)
        entry, blocks = self._weights.entry(stored), self._weights.blocks(stored)
        if heads := heads_in_pairs(self._spec, name):
            blocks = blocks[rows_from_pairs(heads, self._spec.head_dim)]
        if entry.kind.quantized:
            return unpack(name, entry.kind, blocks, f"{self._weights.path(stored)}: tensor {stored}")
        return Tensor(name, entry.kind.name.lower(), blocks)

    def stored_form(self, name: str) -> StoredForm:
        """What the header says of the weight with this canonical name. Raises CheckpointError."""
        return of_block_type(name, self._weights.entry(self._stored_name(name)).kind)

    def release(self, name: str) -> None:
        """Give the weight's pages back to the operating system."""
        self._weights.release(self._stored_name(name))

    def _stored_name(self, name: str) -> str:
        if name not in self._spec.tensor_shapes():
            raise CheckpointError(f"{self._name} has no weight named {shown(name)}")
        return gguf_name(name)

    def _rope_factors(self) -> Float32 | None:
        if ROPE_FACTORS not in self._weights:
            return None
        entry = self._weights.entry(ROPE_FACTORS)
        if entry.kind.name != "F32" or len(entry.shape) != 1:
            shape = list(entry.shape)
            raise CheckpointError(f"{self._name}: tensor {ROPE_FACTORS} is {entry.kind.name} {shape}; expected F32 [n]")
        return np.asarray(self._weights.blocks(ROPE_FACTORS), np.float32)


def check_complete(spec: DecoderSpec, weights: GgufParts) -> None:
    """Every weight is there with the right shape, vectors unquantized, and nothing else is. Raises CheckpointError."""
    shapes = {gguf_name(name): shape for name, shape in spec.tensor_shapes().items()}
    for name, shape in shapes.items():
        if name not in weights:
            raise CheckpointError(f"{weights.first}: tensor {name} is missing; expected shape {list(shape)}")
        entry = weights.entry(name)
        if entry.shape != shape:
            raise CheckpointError(
                f"{weights.path(name)}: tensor {name} has shape {list(entry.shape)}; expected {list(shape)}"
            )
        if len(shape) == 1 and entry.kind.quantized:
            raise CheckpointError(
                f"{weights.path(name)}: tensor {name} is {entry.kind.name}; expected F32, F16 or BF16"
            )
    for name in weights.names():
        if name not in shapes and name != ROPE_FACTORS:
            raise CheckpointError(f"{weights.path(name)}: tensor {shown(name)} has no place in a {spec.family} model")


def _plain_form(weights: GgufParts) -> str:
    """The widest form of the matrices that are not quantized, bf16 where all are; vectors are float32 always."""
    kinds = (weights.entry(name).kind for name in weights.names() if len(weights.entry(name).shape) == 2)
    forms = {kind.name.lower() for kind in kinds if not kind.quantized}
    return next((form for form in ("f32", "bf16", "f16") if form in forms), "bf16")


def _endings(metadata: dict[str, Any], vocab: int) -> list[int]:
    """Ids of the control tokens that end an answer by their name. Raises CheckpointError for more tokens than rows of
    the embedding, or types that are not one for each.
    """
    tokens, types = metadata.get(TOKENS), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, Strings):
        return []
    if len(tokens) > vocab:
        raise CheckpointError(f"{TOKENS} has {len(tokens)} entries; expected at most {vocab}, the rows of {EMBED}")
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        return []
    control = set(np.flatnonzero(types == CONTROL).tolist())
    return [token_id for token_id, token in enumerate(tokens) if token_id in control and token in ENDINGS]


def _plain_data(value: NDArray[Any] | Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, Strings) else value
