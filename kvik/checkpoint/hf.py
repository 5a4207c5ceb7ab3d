"""A directory in Hugging Face layout: config.json and safetensors, opened and checked, not yet read.

Opening costs milliseconds: the config is read and everything unsupported refused, then each weight's name, form and
shape are held against the spec, and those of its parts where it is quantized. After that a runner can take the tensors
one by one without meeting a surprise. This file knows nothing of how weights are computed with, nor of tokenizers.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.checkpoint import Tensor
from kvik.checkpoint.families import find_family, read_spec
from kvik.checkpoint.families.decoder import MODEL_NAMES, Family, read_eos
from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.files import read_json, shown
from kvik.checkpoint.formats.layout import FLOATS, Layout
from kvik.checkpoint.formats.shards import Weights, open_weights
from kvik.checkpoint.matrices import DTYPES, QuantizedMatrices
from kvik.checkpoint.quantization import read_layout
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.spec import DecoderSpec
from kvik.checkpoint.stored import StoredForm, of_layout
from kvik.errors import CheckpointError
from kvik.step import Float32

_DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tables that old checkpoints store and every reader recomputes."""
_CHUNK = 1 << 20


class HuggingFaceCheckpoint:
    """A model on disk. Satisfies the `Checkpoint` protocol."""

    def __init__(self, directory: str | Path, name: str | None = None) -> None:
        """Open and check a directory. Raises CheckpointError (what is wrong where), UnsupportedModelError."""
        path = Path(directory)
        fields = read_config(path)
        spec, self._family = read_spec(fields), find_family(fields)
        self._weights = open_weights(path)
        layout = read_layout(fields)
        self._matrices = QuantizedMatrices(layout, self._weights) if layout is not None else None
        spec = _with_stored_form(spec, self._family, self._weights, self._matrices)
        check_complete(spec, self._family, self._weights, self._matrices)
        self._spec = replace(spec, eos_ids=_all_eos(path, spec))
        self._directory = path
        self._name = name or str(directory)

    @property
    def name(self) -> str:
        """The directory, or the hub id it came from."""
        return self._name

    @property
    def spec(self) -> DecoderSpec:
        """What the config and the stored weights describe."""
        return self._spec

    @property
    def directory(self) -> Path:
        """Where config, weights and tokenizer lie."""
        return self._directory

    @property
    def layout(self) -> Layout | None:
        """How its quantized matrices are stored; None where all weights are plain."""
        return None if self._matrices is None else self._matrices.layout

    def tensor(self, name: str) -> Tensor | QuantizedTensor:
        """A view of the weight with this canonical name, straight from the memory map; a quantized matrix unpacked.
        Raises CheckpointError.
        """
        stored = self._stored_name(name)
        if self._matrices is not None and self._matrices.holds(stored):
            return self._matrices.read(name, stored, self._spec.tensor_shapes()[name])
        return Tensor(name, DTYPES[self._weights.entry(stored).dtype], self._weights.array(stored))

    def stored_form(self, name: str) -> StoredForm:
        """What config and headers say of the weight with this canonical name. Raises CheckpointError."""
        stored = self._stored_name(name)
        if self._matrices is None or not self._matrices.holds(stored):
            return StoredForm(name, DTYPES[self._weights.entry(stored).dtype])
        shape = self._spec.tensor_shapes()[name]
        return of_layout(name, self._matrices.layout, shape, self._wide_scales(stored, shape))

    def _wide_scales(self, stored: str, shape: tuple[int, ...]) -> Float32 | None:
        """A quantized matrix's scales [outputs, groups]; None where they are stored as f16."""
        assert self._matrices is not None
        parts = self._matrices.layout.parts(*shape)
        part = next(part for part, expected in parts.items() if expected.dtypes == FLOATS)
        stored = stored.removesuffix("weight") + part
        form = DTYPES[self._weights.entry(stored).dtype]
        if form == "f16":
            return None
        scales = Tensor(stored, form, self._weights.array(stored)).float32()
        return scales if part == "weight_scale" else scales.T

    def release(self, name: str) -> None:
        """Give the weight's pages back to the operating system."""
        stored = self._stored_name(name)
        if self._matrices is not None and self._matrices.holds(stored):
            self._matrices.release(stored, self._spec.tensor_shapes()[name])
        else:
            self._weights.release(stored)

    def _stored_name(self, name: str) -> str:
        parts = name.split(".")
        known = name in MODEL_NAMES or (len(parts) == 3 and parts[2] in self._family.layer_names)
        stored = self._family.tensor_name(name) if known else ""
        quantized = known and self._matrices is not None and self._matrices.holds(stored)
        if not (stored in self._weights or quantized) or (name == "head" and self._spec.tied_head):
            raise CheckpointError(f"{self._name} has no weight named {shown(name)}")
        return stored


def read_config(directory: Path) -> Fields:
    """The config.json of a directory. Raises CheckpointError."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory")
    return Fields(str(path), read_json(path))


def _with_stored_form(
    spec: DecoderSpec, family: Family, weights: Weights, matrices: QuantizedMatrices | None
) -> DecoderSpec:
    """The spec as the weights tell it: their dtype, and whether a head that should be tied is."""
    embed = family.tensor_name("embed")
    if embed in weights:
        stored = weights.entry(embed).dtype
        if stored not in DTYPES:
            raise CheckpointError(
                f"{weights.path(embed)}: tensor {embed} has dtype {stored}; expected one of {', '.join(DTYPES)}"
            )
        spec = replace(spec, dtype=DTYPES[stored])
    quantized_head = matrices is not None and matrices.holds(family.tensor_name("head"))
    if spec.tied_head and embed in weights and (quantized_head or _head_differs(family, weights)):
        return replace(spec, tied_head=False)
    return spec


def _head_differs(family: Family, weights: Weights) -> bool:
    """Whether a head is stored that is not the embedding: then it is the head, whatever the config says of tying
    (transformers 5 decides so). Equal bytes are the usual case and are compared in pieces.
    """
    embed, head = family.tensor_name("embed"), family.tensor_name("head")
    if head not in weights:
        return False
    first, second = weights.entry(embed), weights.entry(head)
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return True
    same = _equal_bytes(weights.array(embed).reshape(-1), weights.array(head).reshape(-1))
    weights.release(head)
    return not same


def _equal_bytes(left: NDArray[Any], right: NDArray[Any]) -> bool:
    left, right = left.view(np.uint8), right.view(np.uint8)
    return all(np.array_equal(left[at : at + _CHUNK], right[at : at + _CHUNK]) for at in range(0, left.size, _CHUNK))


def check_complete(
    spec: DecoderSpec, family: Family, weights: Weights, matrices: QuantizedMatrices | None = None
) -> None:
    """Every weight is there with the right shape and form, and nothing else is. Raises CheckpointError."""
    expected: set[str] = set()
    form = weights.entry(family.tensor_name("embed")).dtype if family.tensor_name("embed") in weights else ""
    for canonical, shape in spec.tensor_shapes().items():
        name = family.tensor_name(canonical)
        if matrices is not None and len(shape) == 2 and canonical != "embed" and matrices.holds(name):
            expected |= matrices.check(name, shape)
            continue
        # Beside quantized matrices, norms and biases are kept in whatever form the tool liked.
        free = matrices is not None and len(shape) == 1
        _check_plain(name, shape, tuple(DTYPES) if free else (form,), weights, family)
        expected.add(name)
    _check_nothing_else(expected, spec, family, weights, matrices)


def _check_plain(name: str, shape: tuple[int, ...], dtypes: tuple[str, ...], weights: Weights, family: Family) -> None:
    if name not in weights:
        hint = " (tie_word_embeddings is false)" if name == family.tensor_name("head") else ""
        raise CheckpointError(f"{_where(weights)}: tensor {name} is missing; expected shape {list(shape)}{hint}")
    entry = weights.entry(name)
    if entry.shape != shape:
        raise CheckpointError(
            f"{weights.path(name)}: tensor {name} has shape {list(entry.shape)}; expected {list(shape)}"
        )
    if entry.dtype not in dtypes:
        why = "one of " + ", ".join(dtypes) if len(dtypes) > 1 else f"{dtypes[0]}, as {family.tensor_name('embed')} has"
        raise CheckpointError(f"{weights.path(name)}: tensor {name} has dtype {entry.dtype}; expected {why}")


def _check_nothing_else(
    expected: set[str], spec: DecoderSpec, family: Family, weights: Weights, matrices: QuantizedMatrices | None
) -> None:
    harmless = {family.tensor_name("head")} if spec.tied_head else set()
    for name in weights.names():
        if name in expected or name in harmless or _DERIVED.fullmatch(name):
            continue
        if matrices is None or not matrices.is_spare_bias(name):
            raise CheckpointError(
                f"{weights.path(name)}: tensor {shown(name)} has no place in a {family.architecture} with this config"
            )


def _where(weights: Weights) -> str:
    names = weights.names()
    return str(weights.path(names[0]).parent) if names else "the weights"


def _all_eos(directory: Path, spec: DecoderSpec) -> tuple[int, ...]:
    """End tokens of config.json and, behind them, those that only generation_config.json names."""
    path = directory / "generation_config.json"
    if not path.exists():
        return spec.eos_ids
    more = read_eos(Fields(str(path), read_json(path)), spec.vocab_size, None)
    return tuple(dict.fromkeys(spec.eos_ids + more))
