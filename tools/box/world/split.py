"""Training and held-out, kept apart by construction: a hash of what is said decides which side it is on.

A phrasing (a template with its choices made, before values are filled in) and a value (operands, a list of words, a
record) each belong to one side for ever. Neither the seed nor the order of generation matters. This file knows nothing
of tasks.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from random import Random

PHRASINGS_HELD_OUT = 6
VALUES_HELD_OUT = 12
"""One in so many is held out."""

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_NOT_WORD = re.compile(r"[^a-z0-9{}]+")


def digest(*parts: object) -> int:
    """A number that depends on the parts alone, the same in every process."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def skeleton(phrasing: str) -> str:
    """What two phrasings that differ in case, punctuation or spacing have in common."""
    return _NOT_WORD.sub(" ", phrasing.lower()).strip()


def phrasing_is_held_out(task: str, phrasing: str) -> bool:
    """Whether a phrasing, slots unfilled, belongs to the held-out side."""
    return digest("phrasing", task, skeleton(phrasing)) % PHRASINGS_HELD_OUT == 0


def value_is_held_out(kind: str, *value: object) -> bool:
    """Whether a value belongs to the held-out side."""
    return digest("value", kind, *value) % VALUES_HELD_OUT == 0


def choose(rng: Random, grammar: str) -> str:
    """One sentence of a grammar: every [a|b|c], innermost first, becomes one of its choices. Slots stay."""
    while match := _CHOICE.search(grammar):
        pick = rng.choice(match[1].split("|"))
        grammar = grammar[: match.start()] + pick + grammar[match.end() :]
    return grammar


def fill(phrasing: str, **slots: object) -> str:
    """The phrasing with its {slots} filled in, which are taken as they are."""
    return _SLOT.sub(lambda match: str(slots[match[1]]) if match[1] in slots else match[0], phrasing)


@dataclass(frozen=True)
class Side:
    """One side of the split, drawing only what belongs to it."""

    held_out: bool

    def phrasing(self, rng: Random, task: str, grammars: tuple[str, ...] | list[str]) -> str:
        """A phrasing of this side, slots unfilled."""
        for _ in range(1000):
            phrasing = choose(rng, rng.choice(grammars))
            if phrasing_is_held_out(task, phrasing) == self.held_out:
                return phrasing
        raise ValueError(f"task {task} has no phrasing that is {'held out' if self.held_out else 'for training'}")

    def owns(self, kind: str, *value: object) -> bool:
        """Whether a value is on this side."""
        return value_is_held_out(kind, *value) == self.held_out


TRAIN = Side(False)
HELD_OUT = Side(True)
