"""Which form a quantized weight goes to: what each format becomes, what it takes, and that nothing is rounded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvik.checkpoint.quantized import QuantizedTensor, SuperBlocks
from kvik.errors import CheckpointError
from kvik.runners.forms import tensor_bytes
from kvik.runners.placement import SENTENCES, Placement, place, units
from kvik.step import Float32

ROWS, INPUTS = 64, 512


def f16(values: Float32) -> Float32:
    return values.astype(np.float16).astype(np.float32)


def record(bits: int, group_size: int, *, zero: int | None = None, mins: bool = False, **more: Any) -> QuantizedTensor:
    """A weight with one zero everywhere, or with minima."""
    shape = (ROWS, -(-INPUTS // group_size))
    scales = f16(np.linspace(0.001, 0.1, shape[0] * shape[1], dtype=np.float32).reshape(shape))
    return QuantizedTensor(
        "layers.0.q",
        "made up",
        bits,
        np.zeros((ROWS, INPUTS), np.uint8),
        scales,
        group_size,
        zeros=None if zero is None else np.full(shape, zero, np.int16),
        mins=scales * 8 if mins else None,
        **more,
    )


def super_blocks(groups: int, *, mins: bool) -> SuperBlocks:
    step = np.ones((ROWS, INPUTS // 256), np.float16)
    factor = np.ones((ROWS, groups), np.uint8 if mins else np.int8)
    return SuperBlocks(step, factor, step if mins else None, factor.astype(np.uint8) if mins else None)


Q4_K = record(4, 32, mins=True, super_blocks=super_blocks(INPUTS // 32, mins=True))
Q6_K = record(6, 16, zero=32, super_blocks=super_blocks(INPUTS // 16, mins=False))

CASES = {
    "GPTQ, AWQ, compressed-tensors W4A16": (record(4, 128, zero=8), Placement("int4", 128), 4 + 24 / 128),
    "GPTQ whose zero is 16": (record(4, 32, zero=16), Placement("int4", 32), 4.75),
    "Q4_0": (record(4, 32, zero=8), Placement("int4", 32), 4.75),
    "GPTQ of 3 bits": (record(3, 64, zero=4), Placement("int4", 64), 4.375),
    "4 bits by rows": (record(4, INPUTS, zero=8), Placement("int4", INPUTS), 4 + 24 / 512),
    "W8A8": (record(8, INPUTS, zero=128), Placement("int8", INPUTS), 8 + 32 / 512),
    "Q8_0": (record(8, 32, zero=128), Placement("bytes", 32), 9.0),
    "GPTQ of 8 bits": (record(8, 128, zero=77), Placement("bytes", 128, has_offsets=True), 8.5),
    "GPTQ of 8 bits, symmetric": (record(8, 128, zero=128), Placement("bytes", 128), 8.25),
    "Q4_1": (record(4, 32, mins=True), Placement("bytes", 32, has_offsets=True), 10.0),
    "Q5_0": (record(5, 32, zero=16), Placement("bytes", 32), 9.0),
    "Q2_K": (record(2, 16, mins=True), Placement("bytes", 16, has_offsets=True), 12.0),
    "groups of 48": (record(6, 48, zero=32), Placement("bytes", 16), 10.0),
    "Q4_K": (Q4_K, Placement("k4", 256), 4.625),
    "Q6_K": (Q6_K, Placement("k6", 256), 6.5625),
    "Q5_K": (replace(Q4_K, bits=5), Placement("bytes", 32, has_offsets=True), 10.0),
}


@pytest.mark.parametrize("case", CASES)
def test_each_format_goes_to_its_form_and_takes_its_bits(case: str) -> None:
    weight, placement, bits = CASES[case]
    assert place(weight) == placement
    assert placement.bytes(weight.shape) * 8 / (ROWS * INPUTS) == pytest.approx(bits)
    assert placement.sentence == SENTENCES[placement.form]


def test_four_bits_in_groups_of_128_are_under_27_percent_of_bf16() -> None:
    assert Placement("int4", 128).bytes((4096, 4096)) < 0.27 * tensor_bytes((4096, 4096), "bf16")


def test_int4_takes_as_much_as_the_same_form_made_on_load() -> None:
    for group in (32, 64, 128):
        assert Placement("int4", group).bytes((96, 256)) == tensor_bytes((96, 256), "int4", group)
    assert tensor_bytes((96, 256), "int4", 128) < tensor_bytes((96, 256), "int4")


def test_sides_are_padded() -> None:
    assert Placement("int8", 96).bytes((33, 65)) == 64 * (96 + 4)
    assert Placement("bytes", 64).bytes((32, 65)) == 32 * (96 + 2 * 4)


def test_scales_too_small_for_f16_are_held_as_powers_of_two_of_each_row() -> None:
    tiny = record(4, 32, zero=8)
    tiny = replace(tiny, scales=tiny.scales * np.float32(2.0**-30))
    placement = place(tiny)
    assert placement == Placement("int4", 32, has_units=True)
    assert placement.bytes(tiny.shape) == Placement("int4", 32).bytes(tiny.shape) + 4 * ROWS
    powers = units(tiny.scales)
    assert (f16(tiny.scales / powers) * powers == tiny.scales).all()
    assert (np.frexp(powers)[0] == 0.5).all()


def test_units_of_rows_without_a_sound_scale_are_powers_of_two_still() -> None:
    scales = np.array([[0, 0], [np.inf, 1], [np.nan, 1]], np.float32)
    assert (np.frexp(units(scales))[0] == 0.5).all()


@pytest.mark.parametrize("scale", [0.1, float("nan")])
def test_a_scale_that_f16_cannot_hold_is_kept_as_float32(scale: float) -> None:
    odd = record(4, 32, zero=8)
    odd.scales[3, 3] = scale
    assert place(odd) == Placement("bytes", 32)


def test_zeros_that_no_byte_holds_become_offsets() -> None:
    assert place(record(4, 32, zero=200)) == Placement("bytes", 32, has_offsets=True)
    assert place(record(8, INPUTS, zero=127)) == Placement("bytes", INPUTS, has_offsets=True)


def test_super_blocks_that_do_not_fit_are_held_as_groups() -> None:
    assert place(replace(Q6_K, zeros=Q6_K.zeros - np.int16(1))).form == "bytes"  # type: ignore[operator]
    short = replace(Q4_K, levels=Q4_K.levels[:, :480], scales=Q4_K.scales[:, :15], mins=Q4_K.scales[:, :15])
    assert place(short) == Placement("bytes", 32, has_offsets=True)


def test_groups_that_no_form_has_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"layers\.0\.q has groups of 40 inputs; expected a multiple of 16"):
        place(record(4, 40, zero=8))
