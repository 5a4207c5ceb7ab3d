"""What a runner will hold of each weight of a model, in which form and in how many bytes, before it has loaded any.

Weights that are quantized in the checkpoint go where `placement.py` puts them; others are held in the form that the
options ask for. The native runner's bytes are those of its memory: sides of matrices padded to multiples of 32, pieces
aligned to 64, vectors as float32. Another runner that holds quantized weights is taken to hold as much. This file knows
nothing of free memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.stored import StoredForm, stored_form
from kvik.runners.forms import GROUP, padded, tensor_bytes
from kvik.runners.placement import SENTENCES, Placement, place_stored
from kvik.runners.runner import weight_form

PANEL, ALIGNMENT = 32, 64
SHARING = (("q", "k", "v"), ("gate", "up"))
"""Matrices of a layer that read the same inputs, and so take them in one order."""
PLAIN = {"bf16": "2 bytes a value", "f32": "4 bytes a value"}
_LOSSES = {
    "bf16": "rounded: no value moves by more than 1/512 of itself",
    "int8": "quantized on load: to the nearest of 255 values of a row",
    "int4": "quantized on load: to the nearest of 16 values of a group",
}
"""Of forms that narrow what is stored."""


@dataclass(frozen=True)
class HeldWeight:
    """One weight of a model."""

    stored: StoredForm
    shape: tuple[int, ...]
    form: str
    """A form of the option `weights` but auto, or one of `placement.SENTENCES`."""
    bytes: int
    """Of itself: without padding at its end, and what it shares with others."""
    placement: Placement | None = None
    """Where it is quantized in the checkpoint and held so."""

    @property
    def sentence(self) -> str:
        """The form, for people."""
        return (PLAIN | SENTENCES)[self.form]

    @property
    def loss(self) -> str | None:
        """What is not kept of what is stored, for people; None: all is kept."""
        if self.placement is not None:
            rounds = self.form == "bytes" and self.placement.has_offsets and self.stored.bits == 8
            return "exact, but that each group's offset is rounded once to float32" if rounds else None
        if self.stored.is_quantized:
            return "unpacked, each value rounded once at most to float32"
        return None if self.form in ("f32", self.stored.dtype.lower()) else _LOSSES[self.form]


@dataclass(frozen=True)
class Conversion:
    """Weights of one type in a file that are held in one form."""

    stored: str
    form: str
    count: int
    bytes: int
    """Of all."""
    sentence: str
    loss: str | None


def conversions(held: Mapping[str, HeldWeight]) -> list[Conversion]:
    """What becomes of a model's weights, by what takes most."""
    groups: dict[tuple[str, str, str | None], list[HeldWeight]] = {}
    for each in held.values():
        groups.setdefault((each.stored.dtype, each.form, each.loss), []).append(each)
    found = [
        Conversion(stored, form, len(like), sum(each.bytes for each in like), like[0].sentence, loss)
        for (stored, form, loss), like in groups.items()
    ]
    return sorted(found, key=lambda each: -each.bytes)


def held_weights(checkpoint: Checkpoint, weights: str, backend: str, group_size: int = GROUP) -> dict[str, HeldWeight]:
    """Every weight by its canonical name. `weights` and `group_size` as the options have them; `backend`: a runner's
    name. Raises CheckpointError for a quantized weight that no form holds.
    """
    form = "f32" if backend == "reference" else weight_form(weights, checkpoint.spec.dtype)
    held = {}
    for name, shape in checkpoint.spec.tensor_shapes().items():
        stored = stored_form(checkpoint, name)
        if stored.is_quantized and backend != "reference":
            placement = place_stored(stored, shape)
            held[name] = HeldWeight(stored, shape, placement.form, placement.bytes(shape), placement)
            continue
        own, sides = form, shape
        if backend == "native":
            own = "f32" if len(shape) == 1 else form
            sides = tuple(padded(side, PANEL) for side in shape)
        held[name] = HeldWeight(stored, shape, own, tensor_bytes(sides, own, group_size))
    return held


def total_bytes(held: Mapping[str, HeldWeight], backend: str) -> int:
    """What the runner's memory will be said to be: all weights, and on the native runner what lies between them."""
    if backend != "native":
        return sum(each.bytes for each in held.values())
    total = 0
    for name, each in held.items():
        prefix, _, role = name.rpartition(".")
        if role == "gate":
            total += _gate_and_up(each, held[f"{prefix}.up"])
        elif role != "up":
            total += padded(each.bytes, ALIGNMENT)
        if each.stored.is_ordered and not _comes_after_its_like(held, prefix, role):
            total += 4 * padded(each.shape[1], PANEL)
    return total


def _gate_and_up(gate: HeldWeight, up: HeldWeight) -> int:
    """Of both: one matrix if they are alike, in which all outputs have a unit if some have."""
    if _likeness(gate) != _likeness(up):
        return padded(gate.bytes, ALIGNMENT) + padded(up.bytes, ALIGNMENT)
    total = gate.bytes + up.bytes
    if _has_units(gate) != _has_units(up):
        total += 4 * padded(gate.shape[0], PANEL)
    return padded(total, ALIGNMENT)


def _likeness(held: HeldWeight) -> tuple[object, ...]:
    if held.placement is None:
        return (held.form,)
    return held.form, held.placement.group_size, held.placement.has_offsets, held.stored.is_ordered


def _has_units(held: HeldWeight) -> bool:
    return held.placement is not None and held.placement.has_units


def _comes_after_its_like(held: Mapping[str, HeldWeight], prefix: str, role: str) -> bool:
    """Whether an ordered matrix before this one reads the same inputs."""
    like = next((roles for roles in SHARING if role in roles), (role,))
    return any(held[f"{prefix}.{other}"].stored.is_ordered for other in like[: like.index(role)])
