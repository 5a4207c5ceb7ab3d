"""What the model knows of LLM serving: sheets of terms, options, complaints and comparisons, and how they are asked.

A term has an explanation, why it matters and perhaps how to turn it; each is one fixed answer. Phrasings are held out,
facts are not. This file knows nothing of other tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from tools.box.world.sheets import answered, grammars, lines
from tools.box.world.split import Side, choose, fill, phrasing_is_held_out
from tools.box.world.turn import Turn

TERM_SHEETS = ("metrics", "memory", "scheduling", "model", "tokens", "quantization", "hardware")

WHAT = grammars("what")
WHY = grammars("why")
HOW = grammars("how")
WHY_NEXT = grammars("why_next")
HOW_NEXT = grammars("how_next")
WHAT_NEXT = grammars("what_next")

OPTION_WHAT = grammars("option_what")
OPTION_DEFAULT = grammars("option_default")
OPTION_VALUES = grammars("option_values")
PAIR = grammars("pair")
COMPLAINT = grammars("complaint")


@dataclass(frozen=True)
class Entry:
    """A thing with names and facts about it: `what`, `why`, `how`, `default`, `values`."""

    names: tuple[str, ...]
    facts: dict[str, str]


def read_entries(name: str) -> tuple[Entry, ...]:
    """A sheet of entries: a line of names, then its facts."""
    entries: list[Entry] = []
    for line in lines(name):
        kind, mark, fact = line.partition(": ")
        if mark and kind in ("what", "why", "how", "default", "values"):
            entries[-1].facts[kind] = fact
        else:
            entries.append(Entry(tuple(part.strip() for part in line.split("|")), {}))
    return tuple(entries)


@cache
def terms() -> tuple[Entry, ...]:
    """All terms of all sheets."""
    return tuple(entry for sheet in TERM_SHEETS for entry in read_entries(sheet))


@cache
def options() -> tuple[Entry, ...]:
    """Kvik's options and commands."""
    return read_entries("options")


@cache
def complaints() -> tuple[tuple[str, str], ...]:
    """Grammars of complaints, each with its advice."""
    return answered("symptoms")


@cache
def pairs() -> tuple[tuple[str, str, str], ...]:
    """Two things and the difference between them."""
    return tuple((*(part.strip() for part in names.split("|")), answer) for names, answer in answered("pairs"))  # type: ignore[misc]


def name_of(rng: Random, entry: Entry) -> str:
    """Its first name half of the time, else another."""
    return entry.names[0] if rng.random() < 0.5 else rng.choice(entry.names)


def definition(rng: Random, side: Side, entry: Entry | None = None) -> Turn:
    """What a term means."""
    entry = entry or rng.choice(terms())
    question = fill(side.phrasing(rng, "what", WHAT), t=name_of(rng, entry))
    return Turn("definition", question, entry.facts["what"], topic=entry.names[0])


def reason(rng: Random, side: Side) -> Turn:
    """Why a term matters, or which option turns it."""
    entry = rng.choice(terms())
    kind = "how" if "how" in entry.facts and rng.random() < 0.6 else "why"
    question = fill(side.phrasing(rng, kind, HOW if kind == "how" else WHY), t=name_of(rng, entry))
    return Turn("reason", question, entry.facts[kind], topic=entry.names[0])


def follow_ups(rng: Random, side: Side) -> list[Turn]:
    """A definition, then questions that lean on it, then perhaps the next term."""
    turns: list[Turn] = []
    for number in range(rng.choice((1, 1, 2, 3))):
        entry = rng.choice(terms())
        if number == 0:
            turns.append(definition(rng, side, entry))
        else:
            question = fill(side.phrasing(rng, "what_next", WHAT_NEXT), t=name_of(rng, entry))
            turns.append(Turn("follow_up", question, entry.facts["what"]))
        kinds = [kind for kind in ("why", "how") if kind in entry.facts]
        rng.shuffle(kinds)
        for kind in kinds[: rng.randint(1, 2)]:
            question = side.phrasing(rng, f"{kind}_next", WHY_NEXT if kind == "why" else HOW_NEXT)
            turns.append(Turn("follow_up", question, entry.facts[kind]))
    return turns


def option(rng: Random, side: Side) -> Turn:
    """What an option does, its default, or its values."""
    entry = rng.choice(options())
    kind = rng.choice(list(entry.facts))
    grammars = {"what": OPTION_WHAT, "default": OPTION_DEFAULT, "values": OPTION_VALUES}[kind]
    question = fill(side.phrasing(rng, f"option_{kind}", grammars), t=name_of(rng, entry))
    return Turn("option", question, entry.facts[kind])


def difference(rng: Random, side: Side) -> Turn:
    """How two things differ, named in either order."""
    first, second, answer = rng.choice(pairs())
    if rng.random() < 0.5:
        first, second = second, first
    return Turn("difference", fill(side.phrasing(rng, "pair", PAIR), t=first, u=second), answer)


def advice(rng: Random, side: Side) -> Turn:
    """A complaint and which option to turn. The complaint and its frame are held out together."""
    grammar, answer = rng.choice(complaints())
    while True:
        said = fill(choose(rng, rng.choice(COMPLAINT)), s=choose(rng, grammar))
        if phrasing_is_held_out("complaint", said) == side.held_out:
            return Turn("advice", said[:1].upper() + said[1:], answer)
