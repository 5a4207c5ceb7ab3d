"""GPTQ's layout: `qweight`, `qzeros`, `scales` and `g_idx` of one matrix [N outputs, K inputs], G groups.

    qweight  int32 [K * bits / 32, N]    levels of consecutive inputs in a word
    qzeros   int32 [G, N * bits / 32]    zero points of consecutive outputs in a word; version 1 stores zero - 1
    scales   float [G, N]
    g_idx    int32 [K]                   the group of each input; with act-order groups are spread over the inputs

Version 1 adds 1 to what it reads, so its zeros are 1 .. 2**bits; `gptq_v2` stores them as they are. What is read comes
out with the columns of a group side by side, and `order` says where they came from. This file knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.formats.layout import FLOATS, Part, Parts, check_divides, check_scales, pack, unpack
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.errors import CheckpointError

VERSIONS = ("gptq", "gptq_v2")


@dataclass(frozen=True)
class GptqLayout:
    """The settings of one model. `group_size` is -1 where a whole row shares a scale."""

    bits: int
    group_size: int
    act_order: bool = False
    symmetric: bool = True
    version: str = "gptq"
    damp: float = 0.01
    """For those who read the config; no reader needs it."""

    @property
    def dtype(self) -> str:
        return f"gptq-int{self.bits}"

    @property
    def marker(self) -> tuple[str, str]:
        return "qweight", "I32"

    def parts(self, outputs: int, inputs: int) -> dict[str, Part]:
        """See the top of this file; `g_idx` may be missing where it would say nothing."""
        per_word = 32 // self.bits
        check_divides("inputs", inputs, per_word)
        check_divides("outputs", outputs, per_word)
        groups = -(-inputs // self._size(inputs))
        return {
            "qweight": Part(("I32",), (inputs // per_word, outputs)),
            "qzeros": Part(("I32",), (groups, outputs // per_word)),
            "scales": Part(FLOATS, (groups, outputs)),
            "g_idx": Part(("I32",), (inputs,), optional=not self.act_order or groups == 1),
        }

    def read(self, name: str, parts: Parts) -> QuantizedTensor:
        """The matrix, its columns sorted by group."""
        levels = unpack(parts["qweight"].T, self.bits)
        zeros = unpack(parts["qzeros"], self.bits).astype(np.int16) + np.int16(self.version == "gptq")
        size = self._size(levels.shape[1])
        order = _order(parts["g_idx"], size) if "g_idx" in parts else None
        return QuantizedTensor(
            name=name,
            dtype=self.dtype,
            bits=self.bits,
            levels=levels if order is None else levels[:, order],
            scales=np.ascontiguousarray(check_scales(parts["scales"]).T),
            group_size=size,
            zeros=np.ascontiguousarray(zeros.T),
            order=order,
        )

    def write(self, tensor: QuantizedTensor) -> dict[str, NDArray[Any]]:
        """The parts of a matrix, `g_idx` always."""
        assert tensor.zeros is not None
        stored = tensor.zeros - np.int16(self.version == "gptq")
        if stored.min() < 0 or stored.max() >= 1 << self.bits:
            raise CheckpointError(
                f"has zero points {tensor.zeros.min()} .. {tensor.zeros.max()}, which {self.version} cannot hold"
            )
        groups = np.arange(tensor.shape[1], dtype=np.int32) // np.int32(tensor.group_size)
        levels = tensor.levels
        if tensor.order is not None:
            back = np.argsort(tensor.order)
            levels, groups = levels[:, back], groups[back]
        return {
            "qweight": np.ascontiguousarray(pack(levels, self.bits).T),
            "qzeros": pack(np.ascontiguousarray(stored.T).astype(np.uint8), self.bits),
            "scales": np.ascontiguousarray(tensor.scales.T),
            "g_idx": groups,
        }

    def config(self) -> dict[str, Any]:
        """As transformers, vLLM and the GPTQ tools read it."""
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.act_order,
            "sym": self.symmetric,
            "checkpoint_format": self.version,
            "damp_percent": self.damp,
            "lm_head": False,
            "static_groups": False,
            "true_sequential": True,
            "pack_dtype": "int32",
        }

    def _size(self, inputs: int) -> int:
        return inputs if self.group_size == -1 else self.group_size


def read_gptq(fields: Fields) -> GptqLayout:
    """The layout that a `quantization_config` describes. Raises UnsupportedModelError by name, CheckpointError."""
    bits = _one_of(fields, "bits", (4, 8))
    size = fields.get("group_size")
    if type(size) is not int or (size != -1 and not 1 <= size <= 1 << 20):
        raise fields.wrong("group_size", "-1 or a whole number from 1")
    version = "gptq"
    for name in ("checkpoint_format", "format"):
        if fields.get(name) is not None:
            version = _one_of(fields, name, VERSIONS)
            break
    _refuse(fields)
    return GptqLayout(bits, size, fields.flag("desc_act", False), fields.flag("sym", True), version)


def _refuse(fields: Fields) -> None:
    """What a GPTQ config may ask for beyond this layout."""
    if fields.get("is_marlin_format"):
        raise fields.unsupported("is_marlin_format", "the plain layout of gptq and gptq_v2")
    if fields.get("pack_dtype") not in (None, "int32", "torch.int32"):
        raise fields.unsupported("pack_dtype", "int32")
    dynamic = fields.get("dynamic")
    if dynamic and not (isinstance(dynamic, dict) and all(str(rule).startswith("-:") for rule in dynamic)):
        raise fields.unsupported("dynamic", "one setting for all layers")
    for name in ("adapter", "rotation"):
        if fields.get(name):
            raise fields.unsupported(name, "none")


def _one_of(fields: Fields, name: str, values: tuple[Any, ...]) -> Any:
    value = fields.get(name)
    if isinstance(value, bool) or value not in values:
        raise fields.unsupported(name, ", ".join(map(str, values)))
    return value


def _order(g_idx: NDArray[np.int32], size: int) -> NDArray[np.int32] | None:
    """Inputs sorted by group; None where they are. Raises CheckpointError unless every group has `size` inputs, but
    for the last, which has the rest.
    """
    plain = np.arange(len(g_idx), dtype=np.int32) // np.int32(size)
    if np.array_equal(g_idx, plain):
        return None
    order = np.argsort(g_idx, kind="stable").astype(np.int32)
    if not np.array_equal(g_idx[order], plain):
        raise CheckpointError(f"has a g_idx that does not put {size} inputs into each of {plain[-1] + 1} groups")
    return order
