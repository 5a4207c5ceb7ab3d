"""Nothing that is held out occurs in 20,000 documents of the training text: no question, no phrasing, no value.

Two ways: what both sides drew is recorded where it is drawn, for every task; and the text of the questions is taken
apart again, without asking the split, for the tasks where a question tells its phrasing and values apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random

import pytest

from kvik.bench.tasks import Item, read_items
from tools.box import heldout
from tools.box.corpus import CURRICULUM
from tools.box.world import knowledge, numbers
from tools.box.world.mixture import document
from tools.box.world.split import HELD_OUT, Side, skeleton
from tools.box.world.turn import Turn

DOCUMENTS = 20_000
EXPLAINED = ("definition", "reason")
NUMBERS = ("addition_1", "addition_2", "addition_3", "comparison")

Asked = tuple[str, str, str]
"""Task, question, answer."""


@dataclass
class Drawn:
    """What one side was given."""

    phrasings: set[tuple[str, str]] = field(default_factory=set)
    values: set[tuple[object, ...]] = field(default_factory=set)


@dataclass
class Recording:
    """Everything drawn on either side, the questions of the training text, and the held-out items."""

    sides: dict[bool, Drawn]
    trained: list[Asked]
    items: list[Item]

    @property
    def held_out(self) -> list[Asked]:
        return [(item.task, item.messages[-1]["content"], item.answer) for item in self.items]


def documents() -> Iterator[list[Turn]]:
    """Training documents of all stages of the curriculum in turn, of the seed that was trained on and another."""
    for number in range(DOCUMENTS):
        stage = CURRICULUM[number % len(CURRICULUM)]
        made = document(number // 8 % 2, number, stage.longest, stage.long_share, stage.recall_share)
        yield list(made.turns)


@pytest.fixture(scope="module")
def recording() -> Iterator[Recording]:
    """Make the shipped items and the training text with every draw written down."""
    sides = {False: Drawn(), True: Drawn()}
    draw_phrasing, own = Side.phrasing, Side.owns

    def phrasing(self: Side, rng: Random, task: str, grammars: tuple[str, ...] | list[str]) -> str:
        drawn = draw_phrasing(self, rng, task, grammars)
        sides[self.held_out].phrasings.add((task, skeleton(drawn)))
        return drawn

    def owns(self: Side, kind: str, *value: object) -> bool:
        owned = own(self, kind, *value)
        if owned:
            sides[self.held_out].values.add((kind, *value))
        return owned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Side, "phrasing", phrasing)
        patch.setattr(Side, "owns", owns)
        items = [item for task, count in shipped_counts().items() for item in heldout.items(task, count)]
        trained = [(turn.task, turn.question, turn.answer) for turns in documents() for turn in turns]
        yield Recording(sides, trained, items)


def shipped_counts() -> dict[str, int]:
    tasks = list(dict.fromkeys(item.task for item in read_items()))
    return {task: len(read_items(tasks=[task])) for task in tasks}


def without_term(question: str, entry: knowledge.Entry) -> str:
    """A question with the name of its term taken out."""
    names = sorted(map(re.escape, entry.names), key=len, reverse=True)
    return skeleton(re.sub("|".join(names), "{t}", question, count=1, flags=re.IGNORECASE))


def phrasings_in(asked: Iterable[Asked]) -> set[str]:
    """The phrasings of questions for terms, found from the text; the answer tells which term it is."""
    by_answer = {fact: entry for entry in knowledge.terms() for fact in entry.facts.values()}
    return {without_term(question, by_answer[answer]) for task, question, answer in asked if task in EXPLAINED}


def operands_in(asked: Iterable[Asked]) -> set[tuple[object, ...]]:
    """The operands of sums, in either order, and of comparisons, as they stand."""
    found: set[tuple[object, ...]] = set()
    for task, question, _ in asked:
        if task in NUMBERS:
            numbers = [int(digits) for digits in re.findall(r"\d+", question)]
            found.add(("compare", *numbers) if task == "comparison" else ("sum", *sorted(numbers)))
    return found


def questions_in(asked: Iterable[Asked]) -> set[str]:
    """Whole questions without capitals and marks. A follow-up leans on what was said before, so it is left out."""
    return {skeleton(question) for task, question, _ in asked if task != "follow_up"}


def test_what_ships_is_what_was_recorded(recording: Recording) -> None:
    """So the draws of the held-out side are those of the shipped file, and more."""
    assert recording.items == read_items()


def test_no_phrasing_is_drawn_on_both_sides(recording: Recording) -> None:
    train, held_out = recording.sides[False].phrasings, recording.sides[True].phrasings
    assert not train & held_out
    assert len(train) > 2000
    assert len(held_out) > 300


def test_no_value_is_drawn_on_both_sides(recording: Recording) -> None:
    train, held_out = recording.sides[False].values, recording.sides[True].values
    assert not train & held_out
    assert len(train) > 20_000
    assert len(held_out) > 1500


def test_no_held_out_question_stands_in_the_training_text(recording: Recording) -> None:
    trained = questions_in(recording.trained)
    assert not trained & questions_in(recording.held_out)
    assert len(trained) > 25_000


def test_no_held_out_phrasing_stands_in_the_training_text(recording: Recording) -> None:
    trained = phrasings_in(recording.trained)
    assert not trained & phrasings_in(recording.held_out)
    recorded = {phrasing for _, phrasing in recording.sides[False].phrasings}
    assert len(trained & recorded) > 0.95 * len(trained) > 300, "taking the term out leaves the phrasing"


def test_no_held_out_operands_stand_in_the_training_text(recording: Recording) -> None:
    trained, held_out = operands_in(recording.trained), operands_in(recording.held_out)
    assert not trained & held_out
    assert {len(each) for each in trained | held_out} == {3}, "two numbers in every question"
    assert len(trained) > 2000
    assert len(held_out) > 400


def test_no_held_out_passage_is_copied_in_training(recording: Recording) -> None:
    trained, held_out = (
        {answer for task, _, answer in side if task == "copying"} for side in (recording.trained, recording.held_out)
    )
    assert not trained & held_out
    assert len(trained) > 3000
    assert len(held_out) > 100


def test_a_leak_would_be_found(recording: Recording) -> None:
    """A training text with some hundred held-out documents in it fails all three comparisons of texts."""
    leak = [task(Random(seed), HELD_OUT) for seed in range(400) for task in (knowledge.definition, numbers.addition)]
    trained = [*recording.trained, *((turn.task, turn.question, turn.answer) for turn in leak)]
    for found_in in (questions_in, phrasings_in, operands_in):
        assert found_in(trained) & found_in(recording.held_out)
