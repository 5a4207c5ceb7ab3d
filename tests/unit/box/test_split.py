"""Held-out questions share neither a phrasing nor a value with training, whatever the seed."""

from __future__ import annotations

from random import Random

import pytest

from kvik.bench.tasks import SHIPPED, read_items
from tools.box import heldout
from tools.box.world import knowledge, numbers
from tools.box.world.mixture import TASKS, document
from tools.box.world.sheets import grammars
from tools.box.world.split import (
    HELD_OUT,
    TRAIN,
    Side,
    choose,
    fill,
    phrasing_is_held_out,
    skeleton,
    value_is_held_out,
)

TRAINING_DOCUMENTS = 3000

TASKS_BY_PHRASING = (
    "what", "why", "how", "why_next", "how_next", "what_next", "option_what", "option_default", "option_values",
    "pair", "add", "compare", "count_words", "count_one", "sort", "reverse", "reverse_letters", "reverse_digits",
    "copy", "extract", "extract_of", "json", "needle", "needle_line", "outside", "outside_special", "story",
    "story_free",
)  # fmt: skip


def training_questions() -> set[str]:
    """As training sees them, without what `loosen` may change."""
    found = set()
    for number in range(TRAINING_DOCUMENTS):
        longest, share = ((256, 0.0), (512, 0.0), (2000, 0.03))[number % 3]
        found |= {skeleton(turn.question) for turn in document(0, number, longest, share).turns}
    return found


def test_no_held_out_question_is_asked_in_training() -> None:
    asked = training_questions()
    for task in heldout.MAKERS:
        for item in heldout.items(task, 40):
            assert skeleton(item.messages[-1]["content"]) not in asked or task == "follow_up", item


def test_no_shipped_question_is_asked_in_training() -> None:
    asked = training_questions()
    for item in read_items(SHIPPED):
        assert item.task == "follow_up" or skeleton(item.messages[-1]["content"]) not in asked, item


@pytest.mark.parametrize("task", TASKS_BY_PHRASING)
def test_both_sides_have_phrasings_and_share_none(task: str) -> None:
    rng = Random(task)
    train, held_out = (
        {skeleton(side.phrasing(rng, task, grammars(task))) for _ in range(300)} for side in (TRAIN, HELD_OUT)
    )
    assert not train & held_out
    assert all(phrasing_is_held_out(task, each) for each in held_out)
    assert len(train) > len(held_out) >= 1


@pytest.mark.parametrize("side", [TRAIN, HELD_OUT])
def test_operands_are_those_of_the_side_in_either_order(side: Side) -> None:
    rng = Random(3)
    for _ in range(500):
        a, b = numbers.pair(rng, side, 1, 3)
        assert value_is_held_out("sum", min(a, b), max(a, b)) == side.held_out


def test_complaints_are_held_out_with_their_frame() -> None:
    rng = Random(4)
    train, held_out = (
        {skeleton(knowledge.advice(rng, side).question) for _ in range(500)} for side in (TRAIN, HELD_OUT)
    )
    assert not train & held_out


def test_a_share_of_every_kind_is_held_out() -> None:
    values = [value_is_held_out("sum", a, b) for a in range(100) for b in range(100)]
    assert 0.07 < sum(values) / len(values) < 0.1
    phrasings = [phrasing_is_held_out("what", f"phrasing {number} of {{t}}") for number in range(6000)]
    assert 0.14 < sum(phrasings) / len(phrasings) < 0.19


def test_case_and_punctuation_do_not_change_the_side() -> None:
    assert skeleton("What is {t}?") == skeleton("what is {t}") == skeleton("What  is, {t}!")
    assert skeleton("What is {t}?") != skeleton("What was {t}?")


def test_choices_are_made_innermost_first_and_slots_stay() -> None:
    seen = {choose(Random(seed), "[a|b[c|d]] {t}") for seed in range(50)}
    assert seen == {"a {t}", "bc {t}", "bd {t}"}
    assert fill("{a} and {b}", a="{b}", b=2) == "{b} and 2"


def test_a_document_depends_on_its_number_alone() -> None:
    assert document(0, 17, 512) == document(0, 17, 512)
    assert document(0, 17, 512) != document(0, 18, 512)
    assert document(0, 17, 512) != document(1, 17, 512)


def test_every_task_of_the_mixture_has_a_held_out_side() -> None:
    for task in TASKS:
        assert task(Random(5), HELD_OUT).answer


def test_documents_are_distinct() -> None:
    texts = {str(document(0, number, 512)) for number in range(2000)}
    assert len(texts) > 1990


def test_a_task_without_a_phrasing_on_one_side_says_so() -> None:
    with pytest.raises(ValueError, match="task lone has no phrasing"):
        [side.phrasing(Random(0), "lone", ("only one",)) for side in (TRAIN, HELD_OUT)]
