"""Held-out tasks: questions with one right answer, how an answer is judged, and accuracies with standard errors.

Method: each question is answered once, at temperature 0, through the model's chat template; an answer is right or wrong
by exact match after the judge's own reading (a text, the last number in it, or a JSON object). The questions that ship
with the model in the box come from the side of its split that training never saw. This file knows nothing of how
answers are made.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvik.errors import InvalidRequestError

SHIPPED = Path(__file__).parents[1] / "box" / "tasks" / "held_out.jsonl"
MAX_BYTES = 64 * 2**20
MAX_ANSWER_TOKENS = 192
"""More than any right answer of the shipped tasks takes."""

_NUMBER = re.compile(r"-?\d+")

Answer = Callable[[list[list[dict[str, str]]]], list[str]]
"""Conversations, each ending with a question, to their answers."""


@dataclass(frozen=True)
class Item:
    """One question: `messages` end with it. `score` says how an answer is read: exact, number or json."""

    task: str
    messages: tuple[dict[str, str], ...]
    answer: str
    score: str = "exact"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return {"task": self.task, "score": self.score, "messages": list(self.messages), "answer": self.answer}

    def is_right(self, text: str) -> bool:
        """Whether a text answers the question."""
        read = READINGS[self.score]
        given = read(text)
        return given is not None and given == read(self.answer)


def _exact(text: str) -> Any:
    return text.strip()


def _last_number(text: str) -> Any:
    numbers = _NUMBER.findall(text)
    return int(numbers[-1][-100:]) if numbers else None


def _json_object(text: str) -> Any:
    """The object as pairs in order, since the order of keys is part of the task."""
    try:
        value = json.loads(text.strip(), object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    return repr(value) if isinstance(value, tuple) else None


READINGS: dict[str, Callable[[str], Any]] = {"exact": _exact, "number": _last_number, "json": _json_object}
"""What of an answer counts; None is never right."""


@dataclass(frozen=True)
class Accuracy:
    """Right answers out of all."""

    right: int
    count: int

    @property
    def share(self) -> float:
        """Right answers, as a share of 1."""
        return self.right / self.count

    @property
    def standard_error(self) -> float:
        """Binomial, with one right and one wrong answer added, so that none wrong does not mean no doubt."""
        share = (self.right + 1) / (self.count + 2)
        return math.sqrt(share * (1 - share) / self.count)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return {
            "right": self.right,
            "count": self.count,
            "accuracy": self.share,
            "standard_error": self.standard_error,
        }


@dataclass(frozen=True)
class Judged:
    """What a model made of the items: its answers in their order, and accuracies by task."""

    items: tuple[Item, ...]
    answers: tuple[str, ...]

    @property
    def by_task(self) -> dict[str, Accuracy]:
        """In the order in which tasks first occur."""
        found: dict[str, list[bool]] = {}
        for item, text in zip(self.items, self.answers, strict=True):
            found.setdefault(item.task, []).append(item.is_right(text))
        return {task: Accuracy(sum(right), len(right)) for task, right in found.items()}

    @property
    def overall(self) -> Accuracy:
        """All items alike, whatever their task."""
        return Accuracy(sum(each.right for each in self.by_task.values()), len(self.items))

    @property
    def wrong(self) -> list[tuple[Item, str]]:
        """Items answered wrongly, with what was said."""
        pairs = zip(self.items, self.answers, strict=True)
        return [(item, text) for item, text in pairs if not item.is_right(text)]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return {
            "kind": "tasks",
            "tasks": {task: accuracy.as_dict() for task, accuracy in self.by_task.items()},
            "overall": self.overall.as_dict(),
            "how_obtained": (
                "each question once at temperature 0 through the chat template, with enable_thinking false for "
                f"templates that know it, at most {MAX_ANSWER_TOKENS} tokens; exact match of the text, of the last "
                "number, or of the JSON object with its keys in order; standard error of a binomial share with one "
                "right and one wrong answer added"
            ),
        }

    def lines(self) -> list[str]:
        """A table for people: task, questions, right answers, accuracy and its standard error in percent."""
        rows = [*self.by_task.items(), ("all", self.overall)]
        return [f"{'task':<16}{'questions':>10}{'right':>7}{'accuracy':>11}{'error':>9}", *(_row(*row) for row in rows)]


def _row(task: str, accuracy: Accuracy) -> str:
    share, error = 100 * accuracy.share, 100 * accuracy.standard_error
    return f"{task:<16}{accuracy.count:>10}{accuracy.right:>7}{share:>9.1f} %{error:>7.1f} %"


def parse_item(line: str, where: str) -> Item:
    """An item from a line of JSON. Raises InvalidRequestError saying where and what is wrong."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{where} is not valid JSON: {error}", param="tasks") from error
    if not isinstance(data, dict):
        raise InvalidRequestError(f"{where} holds a {type(data).__name__}; expected an object", param="tasks")
    for field in ("task", "answer"):
        if not isinstance(data.get(field), str):
            raise InvalidRequestError(f"{where} has {field} {data.get(field)!r}; expected a text", param="tasks")
    score = data.get("score", "exact")
    if score not in READINGS:
        raise InvalidRequestError(f"{where} has score {score!r}; expected {', '.join(READINGS)}", param="tasks")
    return Item(data["task"], _messages(data.get("messages"), where), data["answer"], score)


def _messages(value: Any, where: str) -> tuple[dict[str, str], ...]:
    whole = isinstance(value, list) and bool(value)
    if not whole or not all(
        isinstance(each, dict) and all(isinstance(each.get(key), str) for key in ("role", "content")) for each in value
    ):
        raise InvalidRequestError(f"{where} has messages {value!r:.200}; expected role and content each", param="tasks")
    return tuple({"role": each["role"], "content": each["content"]} for each in value)


def read_items(path: Path = SHIPPED, tasks: Sequence[str] = (), limit: int | None = None) -> list[Item]:
    """Items of a JSON-lines file: of these tasks only if any are named, at most `limit` of each.

    Raises InvalidRequestError naming the file and line, or a task that it does not have.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidRequestError(f"{path} has more than {MAX_BYTES} bytes", param="tasks")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path} cannot be read: {error}", param="tasks") from error
    items = [parse_item(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    known = list(dict.fromkeys(item.task for item in items))
    for task in tasks:
        if task not in known:
            raise InvalidRequestError(f"task is {task!r}; expected one of {', '.join(known)}", param="tasks")
    chosen = [[item for item in items if item.task == task] for task in (tasks or known)]
    found = [item for group in chosen for item in group[:limit]]
    if not found:
        raise InvalidRequestError(f"{path} has no items", param="tasks")
    return found


def judge(items: Sequence[Item], answer: Answer) -> Judged:
    """Have every question answered and judge the answers."""
    return Judged(tuple(items), tuple(answer([list(item.messages) for item in items])))
