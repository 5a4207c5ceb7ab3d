"""docs/reliability.md and the catalogue of trials say the same, and the tests that the page names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tools.soak.catalogue import TRIALS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
TRIED = {number for entry in TRIALS.values() for number in entry.promises}
ELSEWHERE = {3, 4, 8, 9}
"""Promises that other pages answer for."""


def existing_tests() -> set[str]:
    """As file::name, without folders."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found.add(f"{path.stem}::{node.name}")
    return found


def rows() -> dict[int, list[str]]:
    """The promise, what holds it and what was reached, by number."""
    found = {}
    for numbers, rest in re.findall(r"^\| ([\d, ]+) \|(.*)\|$", PAGE, re.M):
        found |= {int(number): [cell.strip() for cell in rest.split("|")] for number in numbers.split(",")}
    return found


def test_every_test_on_the_page_exists() -> None:
    named = set(re.findall(r"`(test_\w+::\w+)`", PAGE))
    assert len(named) > 60
    assert not named - existing_tests()


def test_every_promise_with_a_trial_has_a_row_and_every_row_a_trial() -> None:
    assert rows().keys() == TRIED | ELSEWHERE


def test_every_row_has_a_test_and_what_was_reached() -> None:
    for number, (_, held_by, reached) in rows().items():
        assert "::" in held_by or "the same" in held_by, number
        assert len(reached) > 10, number


def test_every_row_names_the_trials_of_its_promise_and_no_others() -> None:
    for number, cells in rows().items():
        named = set(re.findall(r"Trials? ((?:`\w+`(?:, )?)+)", cells[2]))
        said = {name for group in named for name in re.findall(r"\w+", group)}
        assert said == {name for name, entry in TRIALS.items() if number in entry.promises}, number
