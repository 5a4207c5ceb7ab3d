"""How answers are judged, and what is refused as a file of tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from kvik.bench.tasks import Accuracy, Item, judge, parse_item, read_items
from kvik.errors import InvalidRequestError

ASKED = ({"role": "user", "content": "?"},)


def item(answer: str, score: str) -> Item:
    return Item("task", ASKED, answer, score)


@pytest.mark.parametrize(
    ("score", "answer", "text", "right"),
    [
        ("exact", "a, b", " a, b\n", True),
        ("exact", "a, b", "a b", False),
        ("number", "So 2 + 2 = 4.", "4", True),
        ("number", "So 2 + 2 = 4.", "It is 4, not 5", False),
        ("number", "4", "four", False),
        ("number", "-4", "-4", True),
        ("json", '{"a": 1, "b": "x"}', '{ "a":1,"b":"x" }', True),
        ("json", '{"a": 1, "b": "x"}', '{"b": "x", "a": 1}', False),
        ("json", '{"a": 1}', '{"a": "1"}', False),
        ("json", '{"a": 1}', '{"a": 1', False),
        ("json", '{"a": 1}', "1", False),
        ("json", "{}", "[" * 100_000, False),
    ],
)
def test_an_answer_is_right_by_its_reading(score: str, answer: str, text: str, right: bool) -> None:
    assert item(answer, score).is_right(text) is right


def test_accuracies_are_counted_by_task_in_order() -> None:
    items = [Item("b", ASKED, "x"), Item("a", ASKED, "x"), Item("b", ASKED, "y")]
    judged = judge(items, lambda conversations: ["x"] * len(conversations))
    assert {task: (a.right, a.count) for task, a in judged.by_task.items()} == {"b": (1, 2), "a": (1, 1)}
    assert list(judged.by_task) == ["b", "a"]
    assert [each.answer for each, _ in judged.wrong] == ["y"]
    assert judged.as_dict()["tasks"]["b"]["accuracy"] == 0.5


def test_all_items_count_alike_whatever_their_task() -> None:
    items = [*(Item("many", ASKED, "x") for _ in range(9)), Item("few", ASKED, "y")]
    judged = judge(items, lambda conversations: ["x"] * len(conversations))
    assert (judged.overall.right, judged.overall.count) == (9, 10)
    assert judged.as_dict()["overall"]["accuracy"] == 0.9


def test_the_table_has_a_line_for_each_task_and_one_for_all() -> None:
    items = [Item(task, ASKED, answer) for task, answer in (("a", "x"), ("a", "y"), ("b", "y"))]
    head, *rows = judge(items, lambda conversations: ["x"] * len(conversations)).lines()
    assert head.split() == ["task", "questions", "right", "accuracy", "error"]
    assert [row.split()[:4] for row in rows] == [
        ["a", "2", "1", "50.0"],
        ["b", "1", "0", "0.0"],
        ["all", "3", "1", "33.3"],
    ]
    assert len({len(line) for line in (head, *rows)}) == 1, "columns end alike"


def test_the_standard_error_is_binomial_and_never_nothing() -> None:
    assert Accuracy(50, 100).standard_error == pytest.approx(0.05)
    assert 0 < Accuracy(100, 100).standard_error == pytest.approx(math.sqrt(101 / 102 / 102 / 100))


def write(path: Path, *records: object) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_items_are_read_back_chosen_and_limited(tmp_path: Path) -> None:
    items = [Item(task, ASKED, str(number)) for number in range(3) for task in ("a", "b")]
    path = write(tmp_path / "t.jsonl", *(each.as_dict() for each in items))
    assert sorted(read_items(path), key=str) == sorted(items, key=str)
    assert [each.answer for each in read_items(path, ["b"], limit=2)] == ["0", "1"]


def test_an_unknown_task_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", item("x", "exact").as_dict())
    with pytest.raises(InvalidRequestError, match="task is 'nope'; expected one of task"):
        read_items(path, ["nope"])
    with pytest.raises(InvalidRequestError, match="has no items"):
        read_items(write(tmp_path / "empty.jsonl"))
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read_items(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a list"),
        ('{"task": "t"}', "answer None"),
        ('{"task": "t", "answer": "a", "score": "vague", "messages": []}', "score 'vague'"),
        ('{"task": "t", "answer": "a", "messages": []}', "messages"),
        ('{"task": "t", "answer": "a", "messages": [{"role": "user"}]}', "messages"),
    ],
)
def test_a_bad_line_is_named(line: str, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said) as caught:
        parse_item(line, "tasks.jsonl, line 7")
    assert "line 7" in str(caught.value)


def test_the_shipped_tasks_are_of_modest_size() -> None:
    from kvik.bench.tasks import SHIPPED

    items = read_items()
    assert SHIPPED.stat().st_size <= 2**20
    assert len({each.task for each in items}) >= 15
    assert len({str(each.messages) for each in items}) == len(items)
