"""Tasks with words: sorting, reversing, spelling, and repeating what was given.

This file knows nothing of numbers, records or long prompts.
"""

from __future__ import annotations

from random import Random

from tools.box.world.numbers import joined
from tools.box.world.sheets import grammars
from tools.box.world.split import Side, choose, fill
from tools.box.world.turn import Turn
from tools.box.world.words import (
    ANIMALS,
    NAMES,
    PLACES,
    QUALITIES,
    any_word,
    code,
    invented,
    tag,
    thing,
    things,
    with_articles,
)

SORT = grammars("sort")
REVERSE = grammars("reverse")
REVERSE_LETTERS = grammars("reverse_letters")
REVERSE_DIGITS = grammars("reverse_digits")
SPELL = grammars("spell")
COPY = grammars("copy")


def word_list(rng: Random, side: Side, kind: str, low: int, high: int) -> list[str]:
    """Different words, a combination of this side."""
    while True:
        words = things(rng, rng.randint(low, high))
        if side.owns(kind, *words):
            return words


def sorting(rng: Random, side: Side) -> Turn:
    """Words in alphabetical order."""
    words = word_list(rng, side, "sort", 2, 7)
    question = fill(side.phrasing(rng, "sort", SORT), list=joined(rng, words))
    return Turn("sorting", question, ", ".join(sorted(words)))


def reversing(rng: Random, side: Side) -> Turn:
    """A list, a number or a word, backwards."""
    roll = rng.random()
    if roll < 0.5:
        words = word_list(rng, side, "reverse", 2, 8)
        question = fill(side.phrasing(rng, "reverse", REVERSE), list=joined(rng, words))
        return Turn("reversing", question, ", ".join(reversed(words)))
    if roll < 0.75:
        return _reverse_digits(rng, side)
    while True:
        word = thing(rng) if rng.random() < 0.7 else invented(rng)
        if side.owns("reverse", word):
            break
    question = fill(side.phrasing(rng, "reverse_letters", REVERSE_LETTERS), word=word)
    return Turn("reversing", question, f"{spaced(word)} backwards is {spaced(word[::-1])}: {word[::-1]}")


def _reverse_digits(rng: Random, side: Side) -> Turn:
    while True:
        number = code(rng, rng.randint(2, 8))
        if side.owns("reverse", number):
            break
    question = fill(side.phrasing(rng, "reverse_digits", REVERSE_DIGITS), word=number)
    return Turn("reversing", question, number[::-1])


def spaced(word: str) -> str:
    """Letters with hyphens between, so that each is a token of its own."""
    return "-".join(word)


def spelling(rng: Random, side: Side) -> Turn:
    """A word letter by letter. Words that are held out for reversing are spelled in training too."""
    word = any_word(rng)
    question = fill(side.phrasing(rng, "spell", SPELL), word=word)
    return Turn("spelling", question, spaced(word))


def passage(rng: Random) -> str:
    """Something to repeat: a sentence or two, words without sense, codes, or a mixture."""
    roll = rng.random()
    if roll < 0.45:
        return " ".join(sentence(rng) for _ in range(rng.randint(1, 4)))
    if roll < 0.65:
        return " ".join(any_word(rng) for _ in range(rng.randint(3, 24)))
    if roll < 0.8:
        return " ".join(invented(rng, rng.randint(1, 3)) for _ in range(rng.randint(2, 12)))
    if roll < 0.9:
        return ", ".join(rng.choice((tag, code))(rng) for _ in range(rng.randint(2, 8)))
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:-_/()'"
    return "".join(rng.choice(letters) for _ in range(rng.randint(4, 24)))


SENTENCES = grammars("sentence")


def sentence(rng: Random) -> str:
    """One plain sentence."""
    n, m = rng.sample(NAMES, 2)
    values = {"q": rng.choice(QUALITIES), "t": thing(rng), "p": rng.choice(PLACES), "a": rng.choice(ANIMALS)}
    template = choose(rng, rng.choice(SENTENCES))
    return with_articles(fill(template, n=n, m=m, number=rng.randint(2, 99), hour=rng.randint(1, 12), **values))


def copying(rng: Random, side: Side) -> Turn:
    """A passage, word for word."""
    while True:
        text = passage(rng)
        if side.owns("copy", text):
            break
    question = fill(side.phrasing(rng, "copy", COPY), text=text)
    return Turn("copying", question, text)
