"""What is not a task: greetings, questions about the model itself, and everything outside its world.

One answer serves everything outside; what is outside is shown by many topics, some of which are kept for testing. This
file knows nothing of what is inside.
"""

from __future__ import annotations

from functools import cache
from random import Random

from tools.box.world.sheets import answered, grammars, lines
from tools.box.world.split import Side, fill
from tools.box.world.turn import Turn
from tools.box.world.words import CITIES, NAMES, PLACES, invented, thing

REFUSAL = (
    "I do not know. My world is small: LLM serving, little exact tasks such as adding and sorting, and short invented "
    "stories."
)


ABOUT = grammars("outside")
SPECIAL = grammars("outside_special")


@cache
def topics() -> dict[str, tuple[str, ...]]:
    """The sheet of what is outside: topics, activities, countries, persons."""
    found: dict[str, tuple[str, ...]] = {}
    for line in lines("outside"):
        kind, _, rest = line.partition(":")
        found[kind] = found.get(kind, ()) + tuple(part.strip() for part in rest.split(",") if part.strip())
    return found


def _owned(rng: Random, side: Side, kind: str) -> str:
    """A topic of this side."""
    while True:
        choice = rng.choice(topics()[kind])
        if side.owns("outside", choice):
            return choice


def refusal(rng: Random, side: Side) -> Turn:
    """A question from outside, and that the model does not know."""
    if rng.random() < 0.55:
        question = fill(side.phrasing(rng, "outside", ABOUT), topic=_owned(rng, side, "topic"))
    else:
        city, city2 = rng.sample(CITIES, 2)
        made = invented(rng, rng.randint(2, 3))
        while not side.owns("outside", made):
            made = invented(rng, rng.randint(2, 3))
        question = fill(
            side.phrasing(rng, "outside_special", SPECIAL),
            country=_owned(rng, side, "country"),
            person=_owned(rng, side, "person"),
            activity=_owned(rng, side, "activity"),
            city=city,
            city2=city2,
            a=rng.randint(2, 999),
            b=rng.randint(2, 99),
            thing=thing(rng),
            place=rng.choice(PLACES),
            made=made,
        )
    return Turn("refusal", question, REFUSAL, weight=0.6)


def talk(rng: Random, side: Side) -> Turn:
    """A greeting or a question about the model."""
    known = answered("talk")
    grammar, answer = known[rng.randrange(len(known))]
    question = side.phrasing(rng, "talk", (grammar,))
    if rng.random() < 0.1:
        question += f" I am {rng.choice(NAMES)}."
    return Turn("talk", question, answer, weight=0.6)
