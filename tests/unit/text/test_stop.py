"""Which stop string wins, what is held back, and that the search is linear."""

from __future__ import annotations

import pytest

from kvik.text.stop import StopSearch


def run(pieces: list[str], stops: list[str]) -> tuple[list[str], str, str | None]:
    search = StopSearch(stops)
    pushed = [search.push(piece) for piece in pieces]
    return pushed, search.finish(), search.matched


@pytest.mark.parametrize(
    ("pieces", "stops", "pushed", "rest", "matched"),
    [
        (["abc", "def"], ["x"], ["abc", "def"], "", None),
        (["ab", "cd"], ["bc"], ["a", ""], "", "bc"),
        (["ab"], ["bc"], ["a"], "b", None),
        (["ab", "xb", "c"], ["bc"], ["a", "bx", ""], "", "bc"),
        (["a", "a", "a", "b"], ["aab"], ["", "", "a", ""], "", "aab"),
        (["bc", "c"], ["abcd", "bc"], ["", ""], "", "bc"),
        (["one two"], ["two", "one"], [""], "", "one"),
        (["abc"], ["abc", "ab"], [""], "", "ab"),
        (["abc"], ["abcd", "bc"], [""], "a", "bc"),
        (["abc", "d"], ["abcd", "bc"], ["", ""], "", "abcd"),
        (["abc", "e"], ["abcd", "bc"], ["", "a"], "", "bc"),
        (["x]", "^-y"], ["]^-"], ["x", ""], "", "]^-"),
    ],
)
def test_earliest_start_wins_and_what_may_match_is_held(
    pieces: list[str], stops: list[str], pushed: list[str], rest: str, matched: str | None
) -> None:
    assert run(pieces, stops) == (pushed, rest, matched)


def test_nothing_follows_a_match() -> None:
    search = StopSearch(["."])
    assert search.push("a.b") == "a"
    assert (search.push("c"), search.finish(), search.matched) == ("", "", ".")


def test_a_long_stop_string_that_nearly_matches_costs_linear_time() -> None:
    """Rescanning what is held for every character would take hours here."""
    search = StopSearch(["a" * 20_000 + "b", "a" * 10_000 + "c"])
    given = sum(len(search.push("a")) for _ in range(200_000))
    assert given == 200_000 - 20_000
    assert len(search.finish()) == 20_000
