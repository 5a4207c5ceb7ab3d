"""StoredForm: what the header of a file tells of a weight before the weight is read.

It is what decides in which form a runner will hold a weight, and so in how many bytes: enough to plan memory for a
model that has not been loaded. Scales are looked at only where their type leaves open what holds them. This file knows
nothing of those forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.formats.awq import AwqLayout
from kvik.checkpoint.formats.compressed import CompressedLayout
from kvik.checkpoint.formats.gguf.layouts import BlockType
from kvik.checkpoint.formats.gguf.unpack import FORMS
from kvik.checkpoint.formats.gptq import GptqLayout
from kvik.checkpoint.formats.layout import Layout
from kvik.step import Float32


@dataclass(frozen=True)
class StoredForm:
    """One weight as it is stored. All but the first two fields are those of a quantized matrix."""

    name: str
    """The canonical name (`DecoderSpec.tensor_shapes`)."""
    dtype: str
    """What the format calls it: bf16, F32, Q4_K, gptq-int4 .."""
    bits: int = 0
    """Of a level; 0 for a weight that is not quantized."""
    group_size: int = 0
    """Inputs that share a scale; all inputs where a row shares one."""
    zeros: tuple[int, int] | None = None
    """Least and greatest zero that there may be; None where groups have minima."""
    scales: Float32 | None = None
    """[N, groups], where they are not f16 as stored."""
    is_ordered: bool = False
    """Whether the inputs are sorted by group."""
    in_super_blocks: bool = False
    """Whether scales are products, as `SuperBlocks` says."""

    @property
    def is_quantized(self) -> bool:
        return self.bits > 0


@runtime_checkable
class TellsStoredForms(Protocol):
    """A checkpoint whose weights may be stored in several forms."""

    def stored_form(self, name: str) -> StoredForm:
        """Of the weight with this canonical name. Raises CheckpointError."""


def stored_form(checkpoint: Checkpoint, name: str) -> StoredForm:
    """How a weight is stored; a checkpoint that does not tell stores all as its spec says."""
    if isinstance(checkpoint, TellsStoredForms):
        return checkpoint.stored_form(name)
    return StoredForm(name, checkpoint.spec.dtype)


def of_block_type(name: str, kind: BlockType) -> StoredForm:
    """A weight of a GGUF file: the type says it all."""
    if not kind.quantized:
        return StoredForm(name, kind.name)
    form = FORMS[kind.name]
    zeros = None if form.offset is None else (form.offset, form.offset)
    return StoredForm(name, kind.name, form.bits, form.group, zeros, in_super_blocks=form.factors is not None)


def of_layout(name: str, layout: Layout, shape: tuple[int, ...], scales: Float32 | None) -> StoredForm:
    """A quantized matrix of a directory, as its config describes it; `scales` as in `StoredForm`."""
    assert isinstance(layout, (GptqLayout, AwqLayout, CompressedLayout))
    inputs = shape[1]
    middle = 1 << (layout.bits - 1)
    symmetric = not isinstance(layout, AwqLayout) and layout.symmetric
    g_idx = layout.parts(*shape).get("g_idx")
    return StoredForm(
        name,
        layout.dtype,
        layout.bits,
        inputs if layout.group_size == -1 else layout.group_size,
        (middle, middle) if symmetric else (0, 2 * middle),
        scales,
        is_ordered=g_idx is not None and not g_idx.optional,
    )
