"""Reads the sheets: plain text beside the code that holds what is known, how it is asked, and of which words.

This file knows nothing of what the sheets are for.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

SHEETS = Path(__file__).parent / "sheets"


def lines(name: str) -> list[str]:
    """The lines of a sheet that say something."""
    text = (SHEETS / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@cache
def _all_grammars() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    task = ""
    for line in lines("grammars"):
        if line.startswith("== "):
            task = line.removeprefix("== ")
            found[task] = ()
        else:
            found[task] += ("" if line == "." else line.replace("\\n", "\n"),)
    return found


def grammars(task: str) -> tuple[str, ...]:
    """The grammars under one heading of the sheet."""
    return _all_grammars()[task]


@cache
def _all_words() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for line in lines("words"):
        kind, _, rest = line.partition(": ")
        found[kind] = found.get(kind, ()) + tuple(rest.split())
    return found


def words(kind: str) -> tuple[str, ...]:
    """The words of one kind."""
    return _all_words()[kind]


@cache
def answered(name: str) -> tuple[tuple[str, str], ...]:
    """A sheet of questions, each followed by its answer."""
    found = lines(name)
    return tuple(
        (question, answer.removeprefix("> ")) for question, answer in zip(found[::2], found[1::2], strict=True)
    )
