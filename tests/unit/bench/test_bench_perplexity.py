"""Perplexity: windows, mean and standard error."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvik.bench.perplexity import cut_windows, measure_perplexity
from kvik.errors import InvalidRequestError


@given(st.lists(st.integers(2, 99), max_size=50), st.integers(3, 12))
def test_with_a_beginning_every_token_is_scored_once(tokens: list[int], window: int) -> None:
    windows = cut_windows(tokens, window, [1])
    assert [token for each in windows for token in each.token_ids[-each.scored :]] == tokens
    assert all(each.token_ids[0] == 1 and len(each.token_ids) <= window for each in windows)


@given(st.lists(st.integers(2, 99), max_size=50), st.integers(2, 12))
def test_without_one_the_first_of_each_window_is_not(tokens: list[int], window: int) -> None:
    windows = cut_windows(tokens, window, [])
    assert sum(each.scored for each in windows) == len(tokens) - math.ceil(len(tokens) / window)


def test_mean_error_and_perplexity() -> None:
    result = measure_perplexity([5, 6, 7, 8], 3, [1], lambda windows: [[-1.0, -3.0] for _ in windows])
    assert (result.tokens, result.windows, result.nll) == (4, 2, 2.0)
    assert result.standard_error == pytest.approx(math.sqrt(4 / 3) / 2)
    assert result.as_dict()["perplexity"] == pytest.approx(math.exp(2))


@pytest.mark.parametrize(("tokens", "window"), [([], 8), ([5], 8), ([5, 6, 7], 2)])
def test_too_little_to_score_is_refused(tokens: list[int], window: int) -> None:
    with pytest.raises(InvalidRequestError):
        measure_perplexity(tokens, window, [1], lambda windows: [[-1.0] * (len(piece) - 1) for piece in windows])
