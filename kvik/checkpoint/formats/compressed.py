"""compressed-tensors' integer layouts of one matrix [N outputs, K inputs], G groups.

    pack-quantized   weight_packed      int32 [N, ceil(K * bits / 32)]   level = integer + 2 ** (bits - 1)
                     weight_zero_point  int32 [ceil(N * bits / 32), G]   packed along the outputs; if asymmetric
                     weight_shape       int   [2]
    int-quantized    weight             int8  [N, K]
                     weight_zero_point  int8  [N, G]                     if asymmetric
    both             weight_scale       float [N, G]                     G is 1 where a row (channel) shares a scale

Activations that the config wants rounded to int8 token by token are no matter of the file: a runner may keep more of
them. This file knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.formats.layout import (
    FLOATS,
    Part,
    Parts,
    check_divides,
    check_scales,
    pack,
    padded,
    same_zero,
    unpack,
)
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.errors import CheckpointError

PACKED, WHOLE = "pack-quantized", "int-quantized"
DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
"""Activations rounded token by token, the only kind that is supported."""


@dataclass(frozen=True)
class CompressedLayout:
    """The settings of one model. `group_size` is -1 for a scale per channel."""

    bits: int
    group_size: int
    symmetric: bool = True
    packed: bool = True
    activations: bool = False
    """Whether activations are to be rounded to int8 where a runner likes that."""

    @property
    def dtype(self) -> str:
        return f"int{self.bits}"

    @property
    def marker(self) -> tuple[str, str]:
        return ("weight_packed", "I32") if self.packed else ("weight", "I8")

    @property
    def offset(self) -> int:
        """Level of the integer 0."""
        return 1 << (self.bits - 1)

    def parts(self, outputs: int, inputs: int) -> dict[str, Part]:
        """See the top of this file."""
        size = self._size(inputs)
        check_divides("inputs", inputs, size)
        groups, per_word = inputs // size, 32 // self.bits
        parts = {"weight_scale": Part(FLOATS, (outputs, groups))}
        if self.packed:
            parts["weight_packed"] = Part(("I32",), (outputs, -(-inputs // per_word)))
            parts["weight_shape"] = Part(("I64", "I32"), (2,))
        else:
            parts["weight"] = Part(("I8",), (outputs, inputs))
        if not self.symmetric:
            zeros = (
                Part(("I32",), (-(-outputs // per_word), groups)) if self.packed else Part(("I8",), (outputs, groups))
            )
            parts["weight_zero_point"] = zeros
        return parts

    def read(self, name: str, parts: Parts) -> QuantizedTensor:
        """The matrix."""
        scales = np.ascontiguousarray(check_scales(parts["weight_scale"]))
        levels = self._levels(parts)
        return QuantizedTensor(
            name=name,
            dtype=self.dtype,
            bits=self.bits,
            levels=levels,
            scales=scales,
            group_size=self._size(levels.shape[1]),
            zeros=same_zero(scales, self.offset) if self.symmetric else self._zeros(parts, levels.shape[0]),
        )

    def _levels(self, parts: Parts) -> NDArray[np.uint8]:
        if not self.packed:
            return np.asarray(parts["weight"].view(np.uint8) ^ np.uint8(128))
        outputs, inputs = (int(size) for size in parts["weight_shape"])
        words = parts["weight_packed"]
        if outputs != len(words) or -(-inputs * self.bits // 32) != words.shape[1]:
            raise CheckpointError(f"has weight_shape {[outputs, inputs]}, which its packed weights do not have")
        return np.ascontiguousarray(unpack(words, self.bits)[:, :inputs])

    def _zeros(self, parts: Parts, outputs: int) -> NDArray[np.int16]:
        stored = parts["weight_zero_point"]
        if not self.packed:
            return np.asarray(stored.astype(np.int16) + np.int16(self.offset))
        return np.ascontiguousarray(unpack(stored.T, self.bits)[:, :outputs].T).astype(np.int16)

    def write(self, tensor: QuantizedTensor) -> dict[str, NDArray[Any]]:
        """The parts of a matrix, whose columns are in their own order."""
        assert tensor.zeros is not None
        zeros, top = tensor.zeros, (1 << self.bits) - 1
        low, high = (self.offset, self.offset) if self.symmetric else (0, top)
        if tensor.order is not None or zeros.min() < low or zeros.max() > high:
            raise CheckpointError(
                f"has act-order or zero points outside {low} .. {high}, which this layout cannot hold"
            )
        parts: dict[str, NDArray[Any]] = {"weight_scale": np.ascontiguousarray(tensor.scales)}
        if self.packed:
            parts["weight_packed"] = pack(padded(tensor.levels, self.bits), self.bits)
            parts["weight_shape"] = np.array(tensor.shape, np.int64)
        else:
            parts["weight"] = (tensor.levels ^ np.uint8(128)).view(np.int8)
        if not self.symmetric:
            parts["weight_zero_point"] = self._stored_zeros(zeros)
        return parts

    def _stored_zeros(self, zeros: NDArray[np.int16]) -> NDArray[Any]:
        if not self.packed:
            return np.asarray(zeros - np.int16(self.offset), np.int8)
        return np.ascontiguousarray(pack(padded(zeros.T.astype(np.uint8), self.bits), self.bits).T)

    def config(self) -> dict[str, Any]:
        """As transformers and vLLM read it."""
        channel = self.group_size == -1
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "channel" if channel else "group",
            "group_size": None if channel else self.group_size,
            "dynamic": False,
        }
        scheme = {"targets": ["Linear"], "weights": weights, "input_activations": DYNAMIC if self.activations else None}
        return {
            "quant_method": "compressed-tensors",
            "format": PACKED if self.packed else WHOLE,
            "quantization_status": "compressed",
            "config_groups": {"group_0": scheme | {"output_activations": None}},
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
        }

    def _size(self, inputs: int) -> int:
        return inputs if self.group_size == -1 else self.group_size


def read_compressed(fields: Fields) -> CompressedLayout:
    """The layout that a `quantization_config` describes. Raises UnsupportedModelError by name, CheckpointError."""
    for name in ("kv_cache_scheme", "transform_config"):
        if fields.get(name):
            raise fields.unsupported(name, "none")
    sparsity = fields.table("sparsity_config")
    if sparsity is not None and sparsity.get("format") not in (None, "dense"):
        raise sparsity.unsupported("format", "dense")
    groups = fields.table("config_groups")
    if groups is None:
        raise fields.wrong("config_groups", "at least one group of layers")
    layouts = {_read_group(fields, group) for name in groups.values if (group := groups.table(name)) is not None}
    if len(layouts) != 1:
        raise fields.unsupported("config_groups", "one scheme for all quantized layers")
    return layouts.pop()


def _read_group(fields: Fields, group: Fields) -> CompressedLayout:
    packed = _read_format(fields, group)
    weights = group.table("weights")
    if weights is None:
        raise group.unsupported("weights", "integers of 4 or 8 bits")
    for name, accepted in (
        ("type", ("int", None)),
        ("num_bits", (4, 8) if packed else (8,)),
        ("strategy", ("group", "channel")),
        ("dynamic", (False, None)),
        ("actorder", ("weight", "static", False, None)),
        ("block_structure", (None,)),
    ):
        if weights.get(name) not in accepted:
            raise weights.unsupported(name, ", ".join(str(value) for value in accepted if value is not None) or "none")
    bits: int = weights.get("num_bits")
    if group.get("output_activations") is not None:
        raise group.unsupported("output_activations", "none")
    size = weights.whole("group_size", 1, 1 << 20) if weights.get("strategy") == "group" else -1
    return CompressedLayout(bits, size, weights.flag("symmetric", True), packed, _read_activations(group))


def _read_format(fields: Fields, group: Fields) -> bool:
    """Whether levels are packed."""
    owner = group if group.get("format") is not None else fields
    form = owner.get("format")
    if form not in (PACKED, WHOLE, "naive-quantized"):
        raise owner.unsupported("format", f"{PACKED}, {WHOLE}")
    return bool(form == PACKED)


def _read_activations(group: Fields) -> bool:
    activations = group.table("input_activations")
    if activations is None:
        return False
    for name, value in DYNAMIC.items():
        if activations.get(name) != value:
            raise activations.unsupported(name, str(value).lower())
    return True
