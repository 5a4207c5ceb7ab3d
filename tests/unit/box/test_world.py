"""Answers of the generated tasks are right, and what the sheets say fits Kvik as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import pytest

from tools.box.world import chatter, knowledge, lists, needle, numbers, records, stories
from tools.box.world.mixture import document
from tools.box.world.sheets import SHEETS
from tools.box.world.split import TRAIN
from tools.box.world.turn import Turn

ROOT = Path(__file__).resolve().parents[3]
MANY = 300


def turns(task: object, **options: object) -> list[Turn]:
    assert callable(task)
    return [task(Random(seed), TRAIN, **options) for seed in range(MANY)]


def test_sums_are_right_and_so_is_every_column() -> None:
    for turn in turns(numbers.addition):
        equations = re.findall(r"(\d[\d +]*) = (\d+)", turn.answer)
        assert all(sum(map(int, left.split(" + "))) == int(right) for left, right in equations)
        a, b = map(int, re.findall(r"\d+", turn.question)[:2])
        assert int(re.findall(r"\d+", turn.answer)[-1]) == a + b


def test_columns_carry() -> None:
    assert (
        numbers.worked_sum(482, 361) == "ones 2 + 1 = 3, tens 8 + 6 = 14, hundreds 4 + 3 + 1 = 8. So 482 + 361 = 843."
    )


def test_comparisons_are_right() -> None:
    for turn in turns(numbers.comparison):
        a, b = map(int, re.findall(r"\d+", turn.answer))
        if "equal" in turn.answer:
            assert a == b
        else:
            assert (a > b) == ("larger" in turn.answer)


def test_counts_are_right() -> None:
    for turn in turns(numbers.counting):
        listed = [part.split()[0] for part in turn.answer.split(".")[0].split(", ")]
        claim = turn.answer.split(". ")[1]
        if claim.startswith("That makes"):
            assert int(re.findall(r"\d+", claim)[0]) == len(listed)
        else:
            word = re.findall(r"So (\w+) occurs", claim)[0]
            times = 1 if "once" in claim else int(re.findall(r"\d+", claim)[0])
            assert listed.count(word) == times


def test_sorted_words_are_those_given_in_order() -> None:
    for turn in turns(lists.sorting):
        words = turn.answer.split(", ")
        assert words == sorted(words)
        assert all(word in turn.question for word in words)


def test_reversed_things_are_reversed() -> None:
    for turn in turns(lists.reversing):
        if turn.answer.isdigit():
            assert turn.answer[::-1] in turn.question
        elif "backwards is" in turn.answer:
            assert turn.answer.split(": ")[1][::-1] in turn.question
        else:
            words = turn.answer.split(", ")[::-1]
            assert ", ".join(words) in turn.question or " ".join(words) in turn.question


def test_copies_and_extracted_values_stand_in_the_question() -> None:
    for turn in [*turns(lists.copying), *turns(records.extraction)]:
        assert turn.answer in turn.question


def test_json_answers_have_the_keys_asked_for_and_types_kept() -> None:
    for turn in turns(records.to_json):
        found = json.loads(turn.answer)
        assert found
        assert all(key in turn.question and str(value) in turn.question for key, value in found.items())


@pytest.mark.parametrize("tokens", [60, 400, 1400])
def test_a_needle_is_in_its_haystack_once(tokens: int) -> None:
    for seed in range(20):
        asked = needle.needle(Random(seed), TRAIN, tokens, questions=3)
        hay = asked[0].question.rpartition("\n\n")[0]
        for turn in asked:
            assert turn.answer in hay
        assert tokens * 0.5 < 1.3 * len(hay.split()) + 8 or ":" in hay or "=" in hay or "->" in hay


def test_stories_hold_what_was_asked_for() -> None:
    for turn in turns(stories.story):
        words = turn.question.lower().split()
        if "about" in words:
            assert words[words.index("about") + 2].strip(".,!?") in turn.answer.lower()
        assert 3 <= turn.answer.count(".") + turn.answer.count("?") <= 12


def test_everything_outside_is_refused_with_the_same_words() -> None:
    assert {turn.answer for turn in turns(chatter.refusal)} == {chatter.REFUSAL}


def test_no_topic_outside_is_a_term_inside() -> None:
    inside = {name.lower() for entry in knowledge.terms() for name in entry.names}
    outside = {topic.lower() for group in chatter.topics().values() for topic in group}
    assert not inside & outside


def test_terms_are_many_and_named_apart() -> None:
    entries = knowledge.terms()
    names = [name for entry in (*entries, *knowledge.options()) for name in entry.names]
    assert len(entries) >= 100
    assert sorted(names) == sorted(set(names))
    assert all({"what", "why"} <= entry.facts.keys() for entry in entries)


def test_explanations_are_short_and_end() -> None:
    for entry in (*knowledge.terms(), *knowledge.options()):
        for fact in entry.facts.values():
            assert fact.endswith(".")
            assert len(fact.split()) <= 60, fact


def test_flags_in_the_sheets_exist() -> None:
    known = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    fields = set(re.findall(r"^\| `(\w+)`", known, re.M))
    commands = {"model", "text", "input"}
    for sheet in SHEETS.glob("*.txt"):
        for flag in re.findall(r"--([a-z][a-z0-9-]*)", sheet.read_text(encoding="utf-8")):
            assert flag.replace("-", "_").removeprefix("no_") in fields | commands, (sheet.name, flag)


def test_defaults_in_the_sheet_are_those_of_the_code() -> None:
    known = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    for name, default in re.findall(r"^\| `(\w+)` \|[^|]*\| `(\w+)` \|", known, re.M):
        for entry in knowledge.options():
            said = entry.facts.get("default", "")
            if entry.names[0] == f"--{name.replace('_', '-')}" and default not in ("True", "False"):
                assert default in said, (name, default, said)


def test_documents_alternate_and_end_with_an_answer() -> None:
    for number in range(200):
        messages = document(0, number, 512).messages()
        roles = [each["role"] for each in messages if each["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(each["content"].strip() for each in messages)
