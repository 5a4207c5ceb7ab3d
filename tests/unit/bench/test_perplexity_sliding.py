"""Sliding windows, errors from blocks of tokens, and bits per byte."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvik.bench.perplexity import Window, block_starts, block_sums, cut_windows, error_of_mean, measure_perplexity
from kvik.errors import InvalidRequestError

LENGTHS = st.integers(0, 60)


@given(LENGTHS, st.integers(2, 12), st.data())
def test_every_token_is_scored_once_in_the_first_window_that_has_it(
    length: int, size: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, size))
    tokens = list(range(length))
    windows = cut_windows(tokens, size + 1, [-1], stride)
    assert [token for each in windows for token in each.token_ids[-each.scored :]] == tokens
    for each in windows[1:]:
        assert each.scored <= stride
        assert len(each.token_ids) - 1 - each.scored >= size - stride, "what the stride leaves to look back on"


@given(LENGTHS, st.integers(2, 12), st.data())
def test_with_overlap_only_the_first_token_of_the_text_is_not_scored(
    length: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    windows = cut_windows(list(range(length)), window, [], stride)
    assert sum(each.scored for each in windows) == max(0, length - 1)
    assert all(len(each.token_ids) > each.scored for each in windows)


def test_windows_of_a_short_text_as_drawn() -> None:
    assert cut_windows([1, 2, 3, 4, 5, 6], 4, [], 2) == [Window([1, 2, 3, 4], 3), Window([3, 4, 5, 6], 2)]
    assert cut_windows([1, 2, 3], 4, [0], 3) == [Window([0, 1, 2, 3], 3)]


@pytest.mark.parametrize("stride", [0, -1, 4])
def test_a_stride_that_would_leave_tokens_out_is_refused(stride: int) -> None:
    with pytest.raises(InvalidRequestError, match=rf"stride is {stride}; expected 1 to 3"):
        cut_windows([1, 2, 3], 4, [0], stride)


def test_only_new_tokens_of_a_window_count() -> None:
    def score(windows: list[list[int]]) -> list[list[float]]:
        return [[-float(token) for token in window[1:]] for window in windows]

    result = measure_perplexity([1, 2, 3, 4, 5, 6], 4, [], score, stride=2)
    assert (result.tokens, result.windows, result.stride) == (5, 2, 2)
    assert result.nll == (2 + 3 + 4 + 5 + 6) / 5


def test_bits_per_byte_are_those_of_a_fair_coin() -> None:
    result = measure_perplexity([1, 1, 1, 1], 3, [0], lambda ws: [[-math.log(2)] * 2 for _ in ws], text_bytes=2)
    assert result.bits_per_byte == pytest.approx(2), "a bit for each of two tokens in a byte"
    assert measure_perplexity([1, 1, 1], 4, [0], lambda ws: [[-1.0] * 3]).bits_per_byte is None


@given(st.integers(1, 5000))
def test_blocks_are_of_like_size_and_cover_all(count: int) -> None:
    sizes = np.diff([*block_starts(count), count])
    assert sizes.sum() == count
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1
    assert len(sizes) <= 64
    assert len(sizes) == count or len(sizes) >= 8
    assert sizes.min() >= 32 or len(sizes) <= max(8, count // 32)


def test_the_error_of_independent_values_is_the_usual_one() -> None:
    values = np.random.default_rng(1).normal(size=6400)
    usual = values.std(ddof=1) / math.sqrt(len(values))
    assert error_of_mean(values, np.ones(len(values))) == pytest.approx(usual)
    assert error_of_mean(block_sums(values), block_sums(np.ones(len(values)))) == pytest.approx(usual, rel=0.3)


def test_neighbours_that_say_the_same_do_not_count_twice() -> None:
    """Every value ten times over knows no more than once; the plain formula would claim an error a third as large."""
    values = np.random.default_rng(2).normal(size=640)
    repeated = np.repeat(values, 10)
    error = error_of_mean(block_sums(repeated), block_sums(np.ones(len(repeated))))
    plain = repeated.std(ddof=1) / math.sqrt(len(repeated))
    assert error > 2 * plain
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)), rel=0.3)


def test_one_block_or_no_spread_has_no_error() -> None:
    assert error_of_mean([3.0], [2]) == 0
    assert error_of_mean([2.0, 4.0], [1, 2]) == 0
