"""Held-out questions: the tasks of evaluation, drawn from the side of the split that training never sees.

Both the phrasing and the values are held out, where a task has values. `python -m tools.box.heldout` writes those that
ship with the model. This file knows nothing of how answers are judged.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from kvik.bench.tasks import SHIPPED, Item
from tools.box.world import chatter, knowledge, lists, needle, numbers, records
from tools.box.world.split import HELD_OUT, Side, digest
from tools.box.world.turn import Conversation, Turn

Maker = Callable[[Random], tuple[Turn, ...]]
SHIPPED_ITEMS = {"needle": 90, "addition_2": 250, "addition_3": 250, "copying": 120}
SHIPPED_OTHERWISE = 150


def _single(task: Callable[[Random, Side], Turn]) -> Maker:
    return lambda rng: (task(rng, HELD_OUT),)


def _addition(digits: int) -> Maker:
    return lambda rng: (numbers.addition(rng, HELD_OUT, digits),)


def _needle(rng: Random) -> tuple[Turn, ...]:
    return tuple(needle.needle(rng, HELD_OUT, rng.randint(100, needle.LONGEST)))


def _needle_long(rng: Random) -> tuple[Turn, ...]:
    return tuple(needle.needle(rng, HELD_OUT, needle.LONGEST))


def _follow_up(rng: Random) -> tuple[Turn, ...]:
    return tuple(knowledge.follow_ups(rng, HELD_OUT)[:2])


MAKERS: dict[str, Maker] = {
    "definition": _single(knowledge.definition),
    "reason": _single(knowledge.reason),
    "follow_up": _follow_up,
    "option": _single(knowledge.option),
    "difference": _single(knowledge.difference),
    "advice": _single(knowledge.advice),
    "refusal": _single(chatter.refusal),
    "addition_2": _addition(2),
    "addition_3": _addition(3),
    "comparison": _single(numbers.comparison),
    "counting": _single(numbers.counting),
    "sorting": _single(lists.sorting),
    "reversing": _single(lists.reversing),
    "copying": _single(lists.copying),
    "extraction": _single(records.extraction),
    "json": _single(records.to_json),
    "needle": _needle,
    "needle_long": _needle_long,
}


def conversations(task: str, count: int, seed: int = 0) -> list[Conversation]:
    """Different held-out conversations; the last answer of each is what is asked for."""
    found: dict[str, Conversation] = {}
    for number in range(100 * count):
        turns = MAKERS[task](Random(digest("held out", task, seed, number)))
        found.setdefault(turns[-1].question if len(turns) == 1 else str(turns), Conversation(turns))
        if len(found) == count:
            break
    return list(found.values())


def as_item(task: str, conversation: Conversation) -> Item:
    """The conversation as evaluation takes it, without its last answer."""
    last = conversation.turns[-1]
    return Item(task, tuple(conversation.messages()[:-1]), last.answer, last.score)


def items(task: str, count: int, seed: int = 0) -> list[Item]:
    """Held-out items of a task."""
    return [as_item(task, each) for each in conversations(task, count, seed)]


def main() -> None:
    """Write the items that ship."""
    parser = argparse.ArgumentParser(description="Write the held-out questions that ship with the model.")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    out: Path = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for task in MAKERS:
            if task != "needle_long":
                for item in items(task, SHIPPED_ITEMS.get(task, SHIPPED_OTHERWISE)):
                    file.write(json.dumps(item.as_dict(), ensure_ascii=False) + "\n")
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
