"""Quantized matrices on the device: packed without loss, quantized as the definition does, multiplied right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvik.checkpoint.checkpoint import Tensor
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.runners.reference.quantized import quantize_int4, quantize_int8

torch = pytest.importorskip("torch")

from kvik.runners.cuda.quantized_linear import QuantizedLinear, joined, multiply_plain, packed  # noqa: E402
from kvik.runners.cuda.quantizing import Rounding  # noqa: E402
from kvik.runners.cuda.ranks import Alone  # noqa: E402
from kvik.runners.cuda.weights import COLUMNS, ROWS, cut_tensor  # noqa: E402

CPU = torch.device("cpu")


def quantized(outputs: int, inputs: int, group: int, bits: int, *, seed: int = 0, **more: Any) -> QuantizedTensor:
    """Random levels; zeros unless `mins` is asked for."""
    rng = np.random.default_rng(seed)
    groups = -(-inputs // group)
    scales = rng.standard_normal((outputs, groups)).astype(np.float16).astype(np.float32)
    mins, order = more.get("mins", False), more.get("order", False)
    return QuantizedTensor(
        name="q",
        dtype="test",
        bits=bits,
        levels=rng.integers(0, 2**bits, (outputs, inputs)).astype(np.uint8),
        scales=scales,
        group_size=group,
        zeros=None if mins else rng.integers(0, 2**bits + 1, scales.shape).astype(np.int16),
        mins=rng.standard_normal(scales.shape).astype(np.float32) if mins else None,
        order=rng.permutation(inputs).astype(np.int32) if order else None,
    )


SHAPES = [(5, 96, 32), (3, 160, 64), (4, 100, 32), (6, 33, 33), (2, 64, 128)]


@pytest.mark.parametrize("more", [{}, {"mins": True}, {"order": True}], ids=["zeros", "mins", "order"])
@pytest.mark.parametrize("bits", [2, 4, 5, 8])
@pytest.mark.parametrize(("outputs", "inputs", "group"), SHAPES)
def test_rows_are_the_values_of_the_record(outputs: int, inputs: int, group: int, bits: int, more: Any) -> None:
    tensor = quantized(outputs, inputs, group, bits, **more)
    linear = joined([tensor], None, CPU, torch.float32, multiply_plain)
    assert np.array_equal(linear.rows(torch.arange(outputs)).numpy(), tensor.float32())
    assert np.array_equal(linear.rows(torch.tensor([1]))[0].numpy(), tensor.float32()[1])


@pytest.mark.parametrize("more", [{}, {"order": True}], ids=["plain", "order"])
def test_products_are_those_of_the_values(more: Any) -> None:
    tensor = quantized(7, 96, 32, 4, **more)
    x, bias = torch.randn(3, 96), torch.randn(7)
    y = joined([tensor], bias, CPU, torch.float32, multiply_plain)(x)
    assert torch.allclose(y, x @ torch.from_numpy(tensor.float32()).T + bias, rtol=1e-4, atol=1e-3)


def test_alike_matrices_become_one_and_others_stand_side_by_side() -> None:
    same = [quantized(4, 64, 32, 4, seed=seed) for seed in (1, 2)]
    other = quantized(3, 64, 64, 8, seed=3)
    x, bias = torch.randn(2, 64), torch.randn(8)
    assert isinstance(joined(same, bias, CPU, torch.float32, multiply_plain), QuantizedLinear)
    for parts, added in ((same, bias), ([*same, other], None)):
        expected = x @ torch.from_numpy(np.concatenate([part.float32() for part in parts])).T
        y = joined(parts, added, CPU, torch.float32, multiply_plain)(x)
        assert torch.allclose(y, expected if added is None else expected + added, rtol=1e-4, atol=1e-3)


def test_four_bits_take_half_a_byte_and_scales_two_where_that_is_exact() -> None:
    matrix = packed([quantized(8, 128, 32, 4)], CPU)
    assert matrix.levels.nbytes == 8 * 64
    assert matrix.scales.dtype == matrix.zeros.dtype == torch.float16
    assert packed([quantized(8, 128, 32, 4, mins=True)], CPU).zeros.dtype == torch.float32


@pytest.mark.parametrize(("form", "group", "symmetric"), [("int8", 32, False), ("int4", 32, False), ("int4", 64, True)])
def test_quantized_on_load_is_the_definition(form: str, group: int, symmetric: bool) -> None:
    """The same integers and scales, rows that are zero, huge or not finite among them."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((40, 150)) * rng.choice([1e-30, 1e-3, 1, 1e6], (40, 1))).astype(np.float32)
    rows[3], rows[4, 7], rows[5, 9] = 0, np.nan, np.inf
    ours = Rounding(form, group, symmetric).quantized(Tensor("w", "f32", rows), CPU)
    assert ours.zeros is not None
    if form == "int8":
        q, scales = quantize_int8(rows)
        sound = np.isfinite(scales[:, 0])
        assert np.array_equal(ours.levels[sound].astype(np.int32) - 128, q[sound].astype(np.int32))
    else:
        q, zeros, scales = quantize_int4(rows, group, symmetric=symmetric)
        assert np.array_equal(ours.levels, q.astype(np.uint8))
        assert np.array_equal(ours.zeros, zeros.astype(np.int16))
    assert np.array_equal(ours.scales, scales, equal_nan=True)


def test_ranks_take_parts_that_make_the_whole() -> None:
    tensor = quantized(6, 128, 32, 4)
    for cut, axis in ((ROWS, 0), (COLUMNS, 1)):
        parts = [cut_tensor(tensor, cut, Alone(rank, 2)) for rank in range(2)]
        assert all(isinstance(part, QuantizedTensor) for part in parts)
        assert np.array_equal(np.concatenate([part.float32() for part in parts], axis), tensor.float32())


def test_columns_that_split_a_group_are_cut_as_plain_numbers() -> None:
    tensor = quantized(6, 96, 32, 4)
    parts = [cut_tensor(tensor, COLUMNS, Alone(rank, 2)) for rank in range(2)]
    assert all(isinstance(part, Tensor) for part in parts)
    assert np.array_equal(np.concatenate([part.float32() for part in parts], 1), tensor.float32())
