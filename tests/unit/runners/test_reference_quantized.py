"""What int8 and int4 keep, worked out by hand; how far it may be off; and what is not a number stays so."""

from __future__ import annotations

import numpy as np
import pytest

from kvik.checkpoint.checkpoint import Tensor
from kvik.runners.reference.quantized import (
    int4_values,
    int8_values,
    kept_weight,
    quantize_int4,
    quantize_int8,
    round_to_bf16,
)
from kvik.step import Float32

BF16_HALF_ULP = 2.0**-8


def floats(*values: float) -> Float32:
    return np.array([values], np.float32)


def random_rows(seed: int, inputs: int = 75) -> Float32:
    """Rows of very different sizes, some of their elements large."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(3, (40, inputs)) * 10.0 ** rng.integers(-6, 4, (40, 1))
    return rows.astype(np.float32)


def by_loops_int8(rows: Float32) -> Float32:
    """The rule for one element after another."""
    kept = np.zeros_like(rows)
    for r, row in enumerate(rows):
        top = max(abs(w) for w in row)
        for c, w in enumerate(row):
            q = np.rint(w * (np.float32(127) / top)) if top else 0
            kept[r, c] = np.float32(min(max(q, -127), 127)) * (top / np.float32(127))
    return kept


def by_loops_int4(rows: Float32) -> Float32:
    """The rule for one element after another."""
    kept = np.zeros_like(rows)
    for r, row in enumerate(rows):
        for start in range(0, len(row), 32):
            group = row[start : start + 32]
            d = round_to_bf16(np.array([max(group, key=abs) / np.float32(-8)]))[0]
            for c, w in enumerate(group, start):
                q = np.rint(w * (np.float32(1) / d)) if d else 0
                kept[r, c] = np.float32(min(max(q, -8), 7)) * d
    return kept


# int8


def test_int8_spreads_a_row_over_127_steps_with_ties_to_even() -> None:
    q, scale = quantize_int8(floats(254, -3, 5, 2, -254, 0))
    assert scale.tolist() == [[2.0]]
    assert q.tolist() == [[127, -2, 2, 1, -127, 0]]
    assert int8_values(floats(254, -3, 5, 2, -254, 0)).tolist() == [[254, -4, 4, 2, -254, 0]]


def test_int8_scales_are_of_their_row() -> None:
    _, scale = quantize_int8(np.array([[127, 1], [0, 0], [-12.7, 0]], np.float32))
    assert scale[:, 0] == pytest.approx([1, 0, 0.1])


@pytest.mark.parametrize("seed", range(4))
def test_int8_is_off_by_half_a_scale_at_most(seed: int) -> None:
    rows = random_rows(seed)
    error = np.abs(int8_values(rows).astype(np.float64) - rows) / quantize_int8(rows)[1]
    assert 0.45 < error.max() <= 0.5 + 1e-4
    assert (int8_values(rows) == by_loops_int8(rows)).all()


@pytest.mark.parametrize("seed", range(4))
def test_int8_of_int8_is_the_same_integers(seed: int) -> None:
    rows = random_rows(seed)
    q, scale = quantize_int8(int8_values(rows))
    assert (q == quantize_int8(rows)[0]).all()
    np.testing.assert_allclose(scale, quantize_int8(rows)[1], rtol=3e-7)


# int4


def test_int4_makes_the_largest_element_minus_eight() -> None:
    q, d = quantize_int4(floats(4, 1, -1.25, 0.25, -4, 3.9))
    assert d.tolist() == [[-0.5]]
    assert q.tolist() == [[-8, -2, 2, 0, 7, -8]]
    assert int4_values(floats(4, 1, -1.25, 0.25, -4, 3.9)).tolist() == [[4, 1, -1, 0, -3.5, 4]]


def test_the_first_of_equally_large_elements_is_the_one_that_fits() -> None:
    assert int4_values(floats(1, -8, 8)).tolist() == [[1, -8, 7]]
    assert int4_values(floats(1, 8, -8)).tolist() == [[1, 8, -7]]


def test_int4_scales_are_bf16() -> None:
    _, d = quantize_int4(floats(8.1, 1))
    assert d.tolist() == [[-1.015625]]


def test_int4_groups_are_32_inputs_and_the_last_is_what_is_left() -> None:
    row = floats(*[1] * 32, *[-80] * 32, *[16] * 3)
    q, d = quantize_int4(row)
    assert d.tolist() == [[-0.125, 10, -2]]
    assert (q == -8).all()
    assert (int4_values(row) == row).all()


@pytest.mark.parametrize("seed", range(4))
def test_int4_is_off_by_half_a_step_or_by_one_where_it_is_clipped(seed: int) -> None:
    """A step rounded down to bf16 makes eight of them fall short, by 8 x 2**-8 of a step at most."""
    rows = random_rows(seed)
    q, d = quantize_int4(rows)
    step = np.abs(np.repeat(d, 32, axis=1)[:, : rows.shape[1]])
    error = np.abs(int4_values(rows).astype(np.float64) - rows) / step
    clipped = q == 7
    assert error[~clipped].max() <= 0.5 + 1e-4
    assert 0.5 < error[clipped].max() <= 1 + 8 * BF16_HALF_ULP
    assert (int4_values(rows) == by_loops_int4(rows)).all()


@pytest.mark.parametrize("seed", range(4))
def test_int4_of_int4_is_the_same(seed: int) -> None:
    kept = int4_values(random_rows(seed))
    assert (int4_values(kept) == kept).all()


# Both


@pytest.mark.parametrize("values", [int8_values, int4_values])
def test_zeros_stay_zeros(values: object) -> None:
    rows = np.zeros((2, 40), np.float32)
    rows[1, 33] = 3
    assert (values(rows) == rows).all()  # type: ignore[operator]


@pytest.mark.parametrize("values", [int8_values, int4_values])
def test_numbers_too_small_to_be_told_apart_are_zero(values: object) -> None:
    tiny = np.full((1, 40), 1e-43, np.float32)
    tiny[0, 5] = 0
    assert (np.abs(values(tiny)) <= 1e-42).all()  # type: ignore[operator]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_a_number_spoils_its_row_or_group_alone(wrong: float) -> None:
    rows = random_rows(0)
    sound8, sound4 = int8_values(rows), int4_values(rows)
    rows[3, 40] = wrong
    eight, four = int8_values(rows), int4_values(rows)
    assert not np.isfinite(eight[3]).any()
    assert (np.delete(eight, 3, 0) == np.delete(sound8, 3, 0)).all()
    assert not np.isfinite(four[3, 32:64]).any()
    four[3, 32:64] = sound4[3, 32:64]
    assert (four == sound4).all()


def test_vectors_are_not_quantized() -> None:
    norm = random_rows(1)[0]
    for form in ("int8", "int4"):
        assert kept_weight(norm, form) is norm
        assert not (kept_weight(norm[None], form) == norm).all()
    assert (kept_weight(norm, "bf16") == Tensor("norm", "f32", round_to_bf16(norm)).float32()).all()
