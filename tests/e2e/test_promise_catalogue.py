"""Every promise has a trial that can be run by hand. Whether docs/reliability.md says the same is for
tests/unit/test_reliability_page.py.
"""

from __future__ import annotations

import re

import pytest

from tools.soak.catalogue import TRIALS, asked_for

PROMISED = {1, 2, *range(5, 8), *range(10, 29), *range(29, 38), 42, 43}


def test_every_promise_has_a_trial() -> None:
    assert {number for entry in TRIALS.values() for number in entry.promises} == PROMISED


def test_a_trial_has_a_server_or_stands_alone_and_says_what_it_is_for() -> None:
    for name, entry in TRIALS.items():
        assert (entry.play is None) != (entry.alone is None), name
        numbers = {int(number) for number in re.findall(r"\d+", entry.says.split(":")[0])}
        assert numbers <= set(entry.promises), name
        assert entry.says.endswith("."), name


def test_trials_are_asked_for_by_name_or_by_promise() -> None:
    assert asked_for([], "") == list(TRIALS)
    assert asked_for(["vanish", "mixed"], "") == ["mixed", "vanish"]
    assert asked_for([], "32,1") == ["mixed", "kill", "hang"]
    for names, promises in ((["nonsense"], ""), ([], "3")):
        with pytest.raises(SystemExit, match="no trial"):
            asked_for(names, promises)
