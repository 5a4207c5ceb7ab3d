"""Finding one fact in a long prompt, and the haystacks it is hidden in.

A haystack is made to a length; facts with keys of their own lie anywhere in it. For training several questions are
asked about one haystack. This file knows nothing of the other tasks.
"""

from __future__ import annotations

from random import Random

from tools.box.world.lists import sentence
from tools.box.world.sheets import grammars
from tools.box.world.split import Side, choose, fill
from tools.box.world.turn import Turn
from tools.box.world.words import CITIES, NAMES, PLACES, QUALITIES, code, invented, tag, thing

FACTS = grammars("needle_fact")
ASK = grammars("needle")
ASK_LINE = grammars("needle_line")
FRONT = grammars("needle_front")

LONGEST = 1460
WORDS_PER_TOKEN = 0.75
TOKENS_PER_LINE = 10.5
"""Roughly, for these texts; the exact length does not matter."""


def key_of_thing(rng: Random) -> str:
    """Such as "red lantern in Oslo"."""
    roll = rng.random()
    base = f"{rng.choice(QUALITIES)} {thing(rng)}"
    if roll < 0.6:
        return base
    return f"{base} in {rng.choice(CITIES)}" if roll < 0.8 else f"{thing(rng)} {rng.choice(PLACES)}"


def value_of(rng: Random) -> str:
    """A number of a few digits, a code, or an invented word."""
    roll = rng.random()
    if roll < 0.6:
        return code(rng, rng.randint(3, 6))
    return tag(rng) if roll < 0.85 else invented(rng)


def prose(rng: Random, facts: dict[str, str], words: int) -> str:
    """Plain sentences with the facts among them."""
    lines = [fill(choose(rng, rng.choice(FACTS)), key=k, value=v, name=rng.choice(NAMES)) for k, v in facts.items()]
    size = sum(len(line.split()) for line in lines)
    while size < words:
        line = sentence(rng)
        size += len(line.split()) + 1
        lines.append(line)
    rng.shuffle(lines)
    return rng.choice((" ", " ", "\n")).join(lines)


def listing(rng: Random, facts: dict[str, str]) -> str:
    """One key and its value a line."""
    mark = rng.choice((": ", " = ", " -> ", ": "))
    return rng.choice(("\n", "\n", "; ")).join(f"{key}{mark}{value}" for key, value in facts.items())


def draw_facts(rng: Random, side: Side, count: int, lines: bool) -> dict[str, str]:
    """Keys and values, all pairs of this side."""
    facts: dict[str, str] = {}
    while len(facts) < count:
        key = rng.choice((thing, invented, key_of_thing))(rng) if lines else key_of_thing(rng)
        value = value_of(rng)
        if side.owns("needle", key, value):
            facts[key] = value
    return facts


def needle(rng: Random, side: Side, tokens: int = 0, questions: int = 1) -> list[Turn]:
    """A long prompt with a question about one fact in it, then further questions. `tokens` is the rough length."""
    tokens = tokens or rng.choice((100, 200, 300, 400))
    words = int(tokens * WORDS_PER_TOKEN)
    lines = rng.random() < 0.3
    if lines:
        count = max(2, int(tokens / TOKENS_PER_LINE))
    else:
        count = max(questions, min(words // 14, rng.choice((1, 2, 4, 8, 16))))
    facts = draw_facts(rng, side, count, lines)
    hay = listing(rng, facts) if lines else prose(rng, facts, words)
    asked = rng.sample(list(facts), min(questions, len(facts)))
    grammars, task = (ASK_LINE, "needle_line") if lines else (ASK, "needle")
    turns = []
    for number, key in enumerate(asked):
        question = fill(side.phrasing(rng, task, grammars), key=key)
        if number == 0:
            question = choose(rng, rng.choice(FRONT)) + hay + "\n\n" + question
        turns.append(Turn("needle", question, facts[key], weight=1.5))
    return turns
