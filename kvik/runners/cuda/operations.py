"""Which function computes each operation, decided once when a model is loaded.

The candidates are the Triton kernels and their twins in plain torch; both take and give the same. This file knows
nothing of models, only of what a device can run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from kvik.runners.cuda import plain
from kvik.runners.cuda.batch import Batch
from kvik.runners.cuda.cache import LayerCache
from kvik.runners.cuda.heads import Heads, Rotary
from kvik.runners.cuda.linear import FixedLinear, PlainLinear
from kvik.runners.cuda.quantized_linear import Multiply, multiply_plain

AddRmsNorm = Callable[[torch.Tensor, "torch.Tensor | None", torch.Tensor, float], "tuple[torch.Tensor, torch.Tensor]"]
RopeAndStore = Callable[[torch.Tensor, Rotary, Batch, LayerCache], torch.Tensor]
Attend = Callable[[torch.Tensor, LayerCache, Heads, Batch, int], torch.Tensor]


@dataclass(frozen=True)
class Operations:
    """What happens between the matrix products; signatures and meaning as in `plain.py`."""

    add_rms_norm: AddRmsNorm
    silu_mul: Callable[[torch.Tensor], torch.Tensor]
    rope_and_store: RopeAndStore
    attend: Attend
    multiply: Multiply
    linear: type[PlainLinear]
    """What holds plain matrices."""
    rows: int
    """Rows of a matrix tile of attention: tokens times query heads of a group, padded to a power of two."""
    capturable: bool
    """Whether a step made of these can be captured in a graph."""

    def tile_size(self, heads: Heads) -> int:
        """Tokens in a tile of a row of several."""
        return max(1, self.rows // padded_group(heads))


def padded_group(heads: Heads) -> int:
    """Query heads of a group, as a power of two."""
    return 1 << (heads.group - 1).bit_length()


PLAIN = Operations(
    plain.add_rms_norm,
    plain.silu_mul,
    plain.rope_and_store,
    plain.attend,
    multiply_plain,
    PlainLinear,
    rows=1 << 30,
    capturable=False,
)


def choose_operations(device: torch.device, attention: str, *, deterministic: bool = False) -> Operations:
    """Triton on a GPU, plain torch on a CPU; with `attention` naive, that one operation is plain everywhere.

    deterministic: attention takes every token alone, with parts divided alike whatever else runs.
    """
    if device.type != "cuda":
        return PLAIN
    operations = triton_operations(device, deterministic=deterministic)
    if attention == "naive":
        return replace(operations, attend=plain.attend, rows=PLAIN.rows, capturable=False)
    return operations


def triton_operations(device: torch.device, *, deterministic: bool = False) -> Operations:
    """The kernels; on a CPU they need Triton's interpreter."""
    from kvik.runners.cuda.kernels import launch, pointwise, product, rope

    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    shapes = launch.FixedShapes() if deterministic else launch.AdaptiveShapes(processors)
    products = product.Products(processors, fixed=deterministic)
    return Operations(
        pointwise.add_rms_norm,
        pointwise.silu_mul,
        rope.rope_and_store,
        partial(launch.attend, shapes),
        partial(product.multiply, products),
        FixedLinear if deterministic else PlainLinear,
        rows=shapes.several_rows,
        capturable=True,
    )
