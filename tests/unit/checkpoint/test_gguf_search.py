"""The quantizers of the GGUF writer: near the best there is, right at the edges, and better than plain rounding."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kvik.checkpoint.formats.gguf.layouts import BY_NAME
from kvik.checkpoint.formats.gguf.pack import WRITTEN, pack
from kvik.checkpoint.formats.gguf.unpack import unpack
from kvik.errors import CheckpointError

Array = NDArray[np.float32]


def kept(values: Array, name: str) -> Array:
    return unpack("w", BY_NAME[name], pack(values, BY_NAME[name], "w"), "w").float32()


def loss(values: Array, name: str) -> float:
    """Root mean square of the error over that of the values."""
    wide = values.astype(np.float64)
    return float(np.sqrt(((wide - kept(values, name)) ** 2).sum() / (wide**2).sum()))


def normal(rows: int = 64) -> Array:
    return np.random.default_rng(3).standard_normal((rows, 1024)).astype(np.float32)


@pytest.mark.parametrize(("name", "most"), [("Q8_0", 0.0055), ("Q6_K", 0.018), ("Q4_K", 0.0735), ("Q4_0", 0.083)])
def test_normal_weights_lose_little(name: str, most: float) -> None:
    assert loss(normal(), name) < most


def plainly_rounded(values: Array) -> Array:
    """Q4_0 without a search: the largest weight is level -8."""
    rows = values.reshape(-1, 32)
    peak = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    step = (peak / -8).astype(np.float16).astype(np.float32)
    return (np.clip(np.rint(rows / step), -8, 7) * step).reshape(values.shape)


def test_the_search_beats_plain_rounding() -> None:
    for values in (normal(), np.random.default_rng(4).standard_t(4, (64, 1024)).astype(np.float32)):
        plain = np.sqrt(((values - plainly_rounded(values)) ** 2).sum() / (values**2).sum())
        assert loss(values, "Q4_0") < 0.98 * plain


def test_minima_pay_where_weights_lie_to_one_side() -> None:
    values = normal() + np.float32(2)
    assert loss(values - 4, "Q4_K") < 0.6 * loss(values - 4, "Q4_0")


@pytest.mark.parametrize("name", WRITTEN)
def test_zeros_stay_zeros(name: str) -> None:
    assert not kept(np.zeros((2, 512), np.float32), name).any()
    mixed = normal(2)
    mixed[:, 256:512] = 0
    assert not kept(mixed, name)[:, 256:512].any()


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("level", [1.0, -1.0, 1e-3, -3e3])
def test_rows_of_one_value_keep_it(name: str, level: float) -> None:
    np.testing.assert_allclose(kept(np.full((2, 256), level, np.float32), name), level, rtol=0.01)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_sign_is_nobodys_favourite(name: str) -> None:
    if name != "Q4_K":  # whose minima take what lies below zero only
        np.testing.assert_array_equal(kept(-normal(4), name), -kept(normal(4), name))
    else:
        assert loss(-normal(), name) == pytest.approx(loss(normal(), name), rel=0.02)


@pytest.mark.parametrize("name", WRITTEN)
def test_sizes_scale_along(name: str) -> None:
    values = normal(4)
    np.testing.assert_array_equal(kept(values * 64, name), kept(values, name) * 64)


@pytest.mark.parametrize("name", WRITTEN)
def test_large_weights_are_kept_up_to_a_limit_and_tiny_ones_are_near_zero(name: str) -> None:
    large = normal(2) * np.float32(60000 / np.abs(normal(2)).max())
    assert loss(large, name) == pytest.approx(loss(normal(2), name), rel=0.01)
    with pytest.raises(CheckpointError, match=f"^weight w holds 65536; expected at most 65504 to write {name}"):
        pack(np.full((1, 256), 65536, np.float32), BY_NAME[name], "weight w")
    assert np.abs(kept(normal(1) * np.float32(1e-30), name)).max() < 1e-5


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_small_weights_are_not_clipped_where_steps_are_coarse(name: str) -> None:
    assert loss(normal() * np.float32(2e-3), name) < 1.25 * loss(normal(), name)


def test_what_is_on_the_grid_stays_there() -> None:
    """Whole numbers that fit the levels are found exactly."""
    rng = np.random.default_rng(5)
    eight = rng.integers(-127, 128, (8, 32)).astype(np.float32)
    eight[:, 0] = 127
    np.testing.assert_array_equal(kept(eight, "Q8_0"), eight)
    four = rng.integers(-8, 8, (8, 32)).astype(np.float32)
    four[:, 0] = -8
    np.testing.assert_array_equal(kept(four, "Q4_0"), four)
