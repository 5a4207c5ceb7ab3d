"""The words that tasks are made of: things, qualities, names, and words that do not exist.

Lists are short enough that a small model learns every word, and combinations make up for it. This file knows nothing
of tasks.
"""

from __future__ import annotations

from random import Random

from tools.box.world.sheets import words

THINGS = words("thing")

QUALITIES = words("quality")

NAMES = words("name")

CITIES = words("city")

PLACES = words("place")

ANIMALS = words("animal")

_ONSETS = words("onset")
_VOWELS = words("vowel")
_CODAS = ["", "", "", "n", "r", "l", "m", "s", "t", "k", "x"]


def invented(rng: Random, syllables: int = 2) -> str:
    """A word that hardly exists, such as "brinol"."""
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))


def thing(rng: Random) -> str:
    """One thing."""
    return rng.choice(THINGS)


def things(rng: Random, count: int) -> list[str]:
    """Different things."""
    return rng.sample(THINGS, count)


def any_word(rng: Random) -> str:
    """Mostly a thing; also qualities, names and words that do not exist."""
    roll = rng.random()
    if roll < 0.55:
        return thing(rng)
    if roll < 0.7:
        return rng.choice(QUALITIES)
    return rng.choice(NAMES) if roll < 0.8 else invented(rng, rng.randint(1, 3))


def code(rng: Random, digits: int = 4) -> str:
    """A number of so many digits, as text; the first is not zero."""
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def tag(rng: Random) -> str:
    """A code of letters and digits, such as "QK-482"."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(2))
    return f"{letters}-{code(rng, 3)}"


def with_articles(text: str) -> str:
    """`a owl` becomes `an owl`."""
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text
