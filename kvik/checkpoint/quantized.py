"""QuantizedTensor: a matrix kept as whole numbers with scales, whatever file format it came from.

GPTQ, AWQ, compressed-tensors and GGUF all say the same thing in different packings: groups of inputs share a scale, and
a zero or a minimum. A reader unpacks its format into this one record, exactly; a runner packs the record for its
kernels. This file knows nothing of either side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvik.step import Float32


@dataclass(frozen=True)
class SuperBlocks:
    """How GGUF's K-quants write scales: small integers, times one half-precision number per 256 inputs.

    The scale of group g is `step[g // groups_per_step] * factor[g]`, its minimum `min_step[..] * min_factor[g]`; both
    products are exact in float32. Kept beside `scales` and `mins` so that a runner may store the smaller form.
    """

    step: NDArray[np.float16]
    """[N, K / 256]."""
    factor: NDArray[np.int8] | NDArray[np.uint8]
    """[N, groups]."""
    min_step: NDArray[np.float16] | None = None
    """[N, K / 256]; None where there are no minima."""
    min_factor: NDArray[np.uint8] | None = None
    """[N, groups]."""


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight [N outputs, K inputs] as levels with a scale per output and group of inputs.

    With `zeros`:  value[n, i] = (levels[n, i] - zeros[n, g]) * scales[n, g]
    With `mins`:   value[n, i] = levels[n, i] * scales[n, g] - mins[n, g]      (exactly one of the two is given)

    where g = i // group_size; the last group may be shorter. Column i of `levels` multiplies input `order[i]`
    (GPTQ's act-order, sorted so that groups lie together), or input i where `order` is None.
    """

    name: str
    """The canonical name (`DecoderSpec.tensor_shapes`)."""
    dtype: str
    """What the format calls itself: "gptq-int4", "awq-int4", "int8", "Q4_K" ..; for people and messages."""
    bits: int
    """Levels are 0 .. 2**bits - 1; up to 8. Signed integers are stored with an offset that `zeros` takes off."""
    levels: NDArray[np.uint8]
    """[N, K]."""
    scales: Float32
    """[N, groups]."""
    group_size: int
    """K where a whole row shares a scale."""
    zeros: NDArray[np.int16] | None = None
    """[N, groups]. May lie outside the levels (GPTQ's first version reaches 2**bits)."""
    mins: Float32 | None = None
    """[N, groups]."""
    order: NDArray[np.int32] | None = None
    """[K], a permutation."""
    super_blocks: SuperBlocks | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, K]."""
        return self.levels.shape

    def float32(self) -> Float32:
        """The values [N, K] with inputs in their own order, each rounded once at most."""
        groups = np.arange(self.shape[1]) // self.group_size
        scales = self.scales[:, groups]
        if self.zeros is not None:
            values = (self.levels.astype(np.float32) - self.zeros[:, groups].astype(np.float32)) * scales
        else:
            assert self.mins is not None
            values = self.levels.astype(np.float32) * scales - self.mins[:, groups]
        if self.order is None:
            return values
        in_order = np.empty_like(values)
        in_order[:, self.order] = values
        return in_order
