"""Bytes of weights, keys and values in each form: the arithmetic behind the memory plan and the cost model.

    bf16, f16, f32   2, 2 or 4 bytes a value
    int8             matrices: 1 byte a weight and a float32 scale per output row; vectors stay float32
    int4             matrices: half a byte a weight, an f16 scale and a byte of zero point per group of inputs of a row;
                     vectors stay float32
    int8 KV          per token, KV head and side: 1 byte a value and a float32 scale
    fp8 KV           1 byte a value, no scale

Weights that are quantized in the checkpoint are counted by `placement.py`. This file knows sizes only, not how values
are rounded (the reference runner's `quantized.py`) or laid out (csrc/).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

VALUE_BYTES = {"bf16": 2, "f16": 2, "f32": 4}
KV_VALUE_BYTES = VALUE_BYTES | {"fp8": 1}
GROUP = 32
"""Inputs with one stored int4 scale; the least that can share one."""


def padded(count: int, multiple: int) -> int:
    """The least multiple that is not below `count`."""
    return -(-count // multiple) * multiple


def tensor_bytes(shape: Sequence[int], form: str, group_size: int = GROUP) -> int:
    """Bytes of one weight, [outputs, inputs] or a vector, in any form of the option `weights` but auto. group_size:
    inputs that share an int4 scale.
    """
    if form in VALUE_BYTES:
        return math.prod(shape) * VALUE_BYTES[form]
    if len(shape) == 1:
        return shape[0] * 4
    outputs, inputs = shape
    if form == "int8":
        return outputs * (inputs + 4)
    return outputs * (-(-inputs // 2) + 3 * -(-inputs // group_size))


def kv_head_bytes(head_dim: int, form: str) -> int:
    """Bytes of one KV head's key and value of one token."""
    return 2 * (head_dim + 4 if form == "int8" else head_dim * KV_VALUE_BYTES[form])
