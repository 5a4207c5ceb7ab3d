"""What int8 and int4 keep, worked out by hand; how far it may be off; and what is not a number stays so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from kvik.checkpoint.checkpoint import Tensor
from kvik.runners.reference.quantized import (
    LEAST_STEP,
    PARTS,
    int4_values,
    int8_values,
    kept_weight,
    ordered_sum,
    quantize_int4,
    quantize_int8,
    round_to_bf16,
    to_step,
)
from kvik.step import Float32

F16_HALF_ULP = 2.0**-11
RULES = {
    "int8": int8_values,
    "int4": int4_values,
    "int4 symmetric": partial(int4_values, symmetric=True),
    "int4 by 128": partial(int4_values, group_size=128),
}
Rule = Callable[[Float32], Float32]


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Rule:
    return RULES[request.param]


def floats(*values: float) -> Float32:
    return np.array([values], np.float32)


def random_rows(seed: int, inputs: int = 75) -> Float32:
    """Rows of very different sizes, some of their elements large."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(3, (40, inputs)) * 10.0 ** rng.integers(-5, 4, (40, 1))
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


def lane_sum(terms: list[np.float32]) -> np.float32:
    """The order of sums for one number after another."""
    lanes = [np.float32(0)] * 16
    for i, term in enumerate(terms):
        lanes[i % 16] += term
    for width in (8, 4, 2, 1):
        lanes = [lanes[i] + lanes[i + width] for i in range(width)]
    return lanes[0]


def rounded(group: Float32, step: np.float32, zero: np.float32) -> tuple[np.float32, list[np.float32]]:
    """(squared error, whole numbers from -zero on) of one group."""
    scaled = [w * (np.float32(1) / step) for w in group]
    whole = [min(max(np.rint(s), -zero), np.float32(15) - zero) for s in scaled]
    return lane_sum([(q - s) * (q - s) for q, s in zip(whole, scaled, strict=True)]) * (step * step), whole


def by_loops_int4(group: Float32) -> tuple[np.float32, np.float32, list[np.float32]]:
    """(step, zero, levels) of one group, one candidate after another."""
    low, high = min(group.min(), np.float32(0)), max(group.max(), np.float32(0))
    best = None
    for part in PARTS:
        step = to_step((high - low) * (part / np.float32(15)))
        exact = min(-low * part * (np.float32(1) / step), np.float32(15))
        for zero in (np.floor(exact), np.ceil(exact)):
            error, whole = rounded(group, step, zero)
            if best is None or error < best[0]:
                best = (error, step, zero, whole)
    assert best is not None
    error, step, zero, whole = best
    products = lane_sum([w * q for w, q in zip(group, whole, strict=True)])
    again = to_step(products / max(lane_sum([q * q for q in whole]), np.float32(1)))
    error_again, whole_again = rounded(group, again, zero)
    if error_again < error:
        step, whole = again, whole_again
    return step, zero, [q + zero for q in whole]


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


def test_int4_keeps_what_sixteen_levels_can_hold() -> None:
    row = floats(*range(-4, 12))
    q, z, d = quantize_int4(row)
    assert (d.tolist(), z.tolist()) == ([[1.0]], [[4.0]])
    assert q.tolist() == [list(range(16))]
    assert (int4_values(row) == row).all()


@pytest.mark.parametrize(("sign", "zero"), [(1, 0), (-1, 15)])
def test_a_group_of_one_sign_has_all_levels_on_its_side(sign: int, zero: int) -> None:
    row = sign * floats(*range(1, 16))
    q, z, d = quantize_int4(row)
    assert (d.tolist(), z.tolist()) == ([[1.0]], [[zero]])
    assert ((q - zero) == row).all()


def test_one_element_far_out_is_clipped_for_the_sake_of_the_others() -> None:
    row = floats(*np.linspace(-1, 1, 127), 1.5)
    kept, whole_range = int4_values(row, 128), np.rint(row * 6) / 6
    assert kept[0, -1] < 1.45
    assert ((kept - row) ** 2).sum() < 0.95 * ((whole_range - row) ** 2).sum()


def test_int4_scales_are_f16() -> None:
    _, _, d = quantize_int4(random_rows(0))
    assert (d.astype(np.float16) == d).all()
    assert not (round_to_bf16(d) == d).all()


def test_sums_have_the_order_that_is_stated() -> None:
    values = random_rows(1, 48)
    expected = [[lane_sum(list(row))] for row in values]
    assert (ordered_sum(values) == np.array(expected, np.float32)).all()
    assert not (ordered_sum(values)[:, 0] == values.sum(axis=1)).all()


@pytest.mark.parametrize("size", [32, 64, 128])
def test_int4_follows_the_rule_group_by_group(size: int) -> None:
    rows = random_rows(size, 150)[:12]
    q, z, d = quantize_int4(rows, size)
    for r, row in enumerate(rows):
        for g in range(-(-150 // size)):
            part = slice(g * size, g * size + size)
            step, zero, levels = by_loops_int4(row[part])
            assert (d[r, g], z[r, g], q[r, part].tolist()) == (step, zero, levels)


@pytest.mark.parametrize("seed", range(4))
def test_int4_is_better_than_rounding_over_the_whole_range(seed: int) -> None:
    rows = random_rows(seed, 64)
    step = (np.maximum(rows.max(1), 0) - np.minimum(rows.min(1), 0))[:, None] / 15
    plain = np.rint(rows / step) * step
    searched = int4_values(rows, 64)
    gain = ((searched - rows).astype(np.float64) ** 2).sum(1) / ((plain - rows) ** 2).sum(1)
    assert gain.max() < 1.1
    assert gain.mean() < 0.95


def test_symmetric_int4_makes_the_largest_element_the_level_0() -> None:
    row = floats(4, 1, -1.25, 0.25, -3.5, 3.9)
    q, z, d = quantize_int4(row, symmetric=True)
    assert (d.tolist(), z.tolist()) == ([[-0.5]], [[8]])
    assert q.tolist() == [[0, 6, 10, 8, 15, 0]]
    assert int4_values(row, symmetric=True).tolist() == [[4, 1, -1, 0, -3.5, 4]]


def test_of_two_largest_elements_the_negative_one_fits() -> None:
    assert int4_values(floats(1, -8, 8), symmetric=True).tolist() == [[1, -8, 7]]
    assert int4_values(floats(1, 8, -8), symmetric=True).tolist() == [[1, 7, -8]]


@pytest.mark.parametrize("seed", range(4))
def test_symmetric_int4_is_off_by_half_a_step_or_by_one_where_it_is_clipped(seed: int) -> None:
    """A step rounded down to f16 makes eight of them fall short, by 8 x 2**-11 of a step at most."""
    rows = random_rows(seed)
    q, _, d = quantize_int4(rows, symmetric=True)
    step = np.abs(np.repeat(d, 32, axis=1)[:, : rows.shape[1]])
    ends = (np.abs(rows) > 1e-3) & (q == 15)
    error = np.abs(int4_values(rows, symmetric=True).astype(np.float64) - rows) / step
    assert error[~ends & (step > 1e-4)].max() <= 0.5 + 8 * F16_HALF_ULP
    assert 0.5 < error[ends].max() <= 1 + 8 * F16_HALF_ULP


@pytest.mark.parametrize("symmetric", [False, True])
def test_groups_are_of_the_size_asked_for_and_the_last_is_what_is_left(symmetric: bool) -> None:
    row = floats(*[1] * 64, *[-80] * 64, *[16] * 3)
    for size, groups in ((32, 5), (64, 3), (128, 2)):
        q, z, d = quantize_int4(row, size, symmetric=symmetric)
        assert (q.shape, z.shape, d.shape) == ((1, 131), (1, groups), (1, groups))
    assert np.abs(int4_values(row, 64, symmetric=symmetric) / row - 1).max() <= F16_HALF_ULP
    assert np.abs(int4_values(row, 128, symmetric=symmetric) / row - 1).max() > 0.5


def test_what_f16_cannot_hold_is_zero_or_clipped_but_never_infinite() -> None:
    large = floats(3e38, -3e38, 1e6, 0)
    assert int4_values(large)[0, 0] - int4_values(large)[0, 1] == 15 * 65504
    assert np.abs(int4_values(large, symmetric=True)).max() == 8 * 65504
    small = floats(LEAST_STEP / 4, -LEAST_STEP / 4)
    assert (int4_values(small) == 0).all()
    assert int4_values(floats(LEAST_STEP * 5, 0)).tolist() == [[LEAST_STEP * 5, 0]]


# Both


def test_zeros_stay_zeros(rule: Rule) -> None:
    rows = np.zeros((2, 40), np.float32)
    rows[1, 33] = 3
    kept = rule(rows)
    assert (kept[rows == 0] == 0).all()
    assert kept[1, 33] == pytest.approx(3, rel=F16_HALF_ULP)


def test_numbers_too_small_to_be_told_apart_are_zero(rule: Rule) -> None:
    tiny = np.full((1, 40), 1e-43, np.float32)
    tiny[0, 5] = 0
    assert (np.abs(rule(tiny)) <= 1e-42).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_spoils_its_row_or_group_alone(wrong: float) -> None:
    rows = random_rows(0)
    sound8, sound4 = int8_values(rows), int4_values(rows)
    rows[3, 40] = wrong
    eight, four = int8_values(rows), int4_values(rows)
    assert np.isnan(eight[3]).all()
    assert (np.delete(eight, 3, 0) == np.delete(sound8, 3, 0)).all()
    assert np.isnan(four[3, 32:64]).all()
    four[3, 32:64] = sound4[3, 32:64]
    assert (four == sound4).all()
    q, z, _ = quantize_int4(rows)
    assert (q[3, 32:64] == 0).all()
    assert z[3, 1] == 0


def test_many_rows_are_each_a_row_alone(rule: Rule) -> None:
    """They are quantized a part at a time."""
    rows = np.random.default_rng(5).standard_normal((300, 500)).astype(np.float32)
    assert (rule(rows)[::37] == np.concatenate([rule(row[None]) for row in rows[::37]])).all()


def test_vectors_are_not_quantized() -> None:
    norm = random_rows(1)[0]
    for form in ("int8", "int4"):
        assert kept_weight(norm, form) is norm
        assert not (kept_weight(norm[None], form) == norm).all()
    assert (kept_weight(norm, "bf16") == Tensor("norm", "f32", round_to_bf16(norm)).float32()).all()


def test_options_of_int4_reach_the_rule() -> None:
    rows = random_rows(2)
    assert (kept_weight(rows, "int4", 64, symmetric=True) == int4_values(rows, 64, symmetric=True)).all()
    assert not (kept_weight(rows, "int4") == kept_weight(rows, "int4", 64)).all()
