"""docs/reliability.md names tests that exist, and says something of every promise it is to answer for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
PROMISED = {1, 2, *range(5, 8), *range(10, 29), *range(30, 38), 42, 43}


def existing_tests() -> set[str]:
    """As file::name, without folders."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found.add(f"{path.stem}::{node.name}")
    return found


def rows() -> dict[int, str]:
    """The row of every promise."""
    found = {}
    for numbers, rest in re.findall(r"^\| ([\d, ]+) \|(.*)$", PAGE, re.M):
        found |= {int(number): rest for number in numbers.split(",")}
    return found


def test_every_test_on_the_page_exists() -> None:
    named = set(re.findall(r"`(test_\w+::\w+)`", PAGE))
    assert len(named) > 60
    assert not named - existing_tests()


def test_every_promise_has_a_row_with_a_test_and_what_was_reached() -> None:
    assert rows().keys() >= PROMISED
    for number, row in rows().items():
        _, held_by, reached, _ = (cell.strip() for cell in row.split("|"))
        assert "::" in held_by or "the same" in held_by, number
        assert len(reached) > 10, number


def test_the_trials_are_those_of_the_page() -> None:
    trials = ast.parse((ROOT / "tools" / "soak" / "trials.py").read_text(encoding="utf-8"))
    docstrings = [ast.get_docstring(node) or "" for node in trials.body if isinstance(node, ast.AsyncFunctionDef)]
    tried = {int(n) for text in docstrings for n in re.findall(r"\d+", text.split(":")[0]) if text[0].isdigit()}
    said = re.search(r"It has trials for ([\d, \n]+) and (\d+)", PAGE)
    assert said is not None
    assert tried == {int(number) for number in re.findall(r"\d+", said[1])} | {int(said[2])}
