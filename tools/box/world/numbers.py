"""Tasks with numbers: adding, comparing and counting. The answers show their work, as far as it helps to be right.

This file knows nothing of the other tasks or of how text becomes tokens.
"""

from __future__ import annotations

from random import Random

from tools.box.world.sheets import grammars
from tools.box.world.split import Side, fill
from tools.box.world.turn import Turn
from tools.box.world.words import NAMES, THINGS, any_word, things

ADD = grammars("add")
ADD_STORY = grammars("add_story")
BRIEF = grammars("brief")

_COMPARISONS = grammars("compare")
COMPARE = (
    "[Compare|Please compare|Compare the numbers|Can you compare] {a} [and|with] {b}[.|]",
    *(grammar.replace("{more}", "larger|bigger|greater") for grammar in _COMPARISONS),
)
COMPARE_LESS = tuple(grammar.replace("{more}", "smaller|lower|lesser") for grammar in _COMPARISONS)
COUNT_WORDS = grammars("count_words")
COUNT_ONE = grammars("count_one")

_PLACES = ("ones", "tens", "hundreds")


def worked_sum(a: int, b: int) -> str:
    """Column by column from the ones, then the sum."""
    columns, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        sum_text = f"{x} + {y}" + (f" + {carry}" if carry else "")
        columns.append(f"{_PLACES[place]} {sum_text} = {total}")
        carry = total // 10
    return f"{', '.join(columns)}. So {a} + {b} = {a + b}."


def operand(rng: Random, digits: int) -> int:
    """A number of so many digits."""
    return rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def pair(rng: Random, side: Side, low: int, high: int) -> tuple[int, int]:
    """Two operands of this side, the longer one of `high` digits, the other of at least `low`."""
    while True:
        a, b = operand(rng, high), operand(rng, rng.randint(low, high))
        if rng.random() < 0.5:
            a, b = b, a
        if side.owns("sum", min(a, b), max(a, b)):
            return a, b


def addition(rng: Random, side: Side, digits: int = 0) -> Turn:
    """Two numbers of up to three digits. `digits` fixes the length of both."""
    high = digits or rng.choice((1, 2, 2, 3, 3, 3, 3))
    a, b = pair(rng, side, digits or 1, high)
    answer, suffix = worked_sum(a, b), ""
    if high == 1:
        answer = f"{a} + {b} = {a + b}."
    if not digits and rng.random() < 0.15:
        answer, suffix = str(a + b), side.phrasing(rng, "brief", BRIEF)
    if not digits and rng.random() < 0.15:
        question = fill(
            side.phrasing(rng, "add_story", ADD_STORY), a=a, b=b, name=rng.choice(NAMES), things=plural(rng)
        )
    else:
        question = fill(side.phrasing(rng, "add", ADD), a=a, b=b)
    return Turn(f"addition_{digits or high}", question + suffix, answer, score="number")


def plural(rng: Random) -> str:
    """Things in the plural, of those that only add an s."""
    while True:
        word = rng.choice(THINGS)
        if word[-1] not in "sxyhfe":
            return word + "s"


def comparison(rng: Random, side: Side) -> Turn:
    """Which of two numbers is larger, or smaller."""
    while True:
        a = operand(rng, rng.randint(1, 3))
        near = rng.random() < 0.3
        b = max(0, a + rng.randint(-9, 9)) if near else operand(rng, rng.randint(1, 3))
        if side.owns("compare", a, b):
            break
    less = rng.random() < 0.35
    grammars, task = (COMPARE_LESS, "compare_less") if less else (COMPARE, "compare")
    question = fill(side.phrasing(rng, task, grammars), a=a, b=b)
    if a == b:
        answer = f"{a} and {b} are equal."
    elif less:
        answer = f"{min(a, b)} is smaller than {max(a, b)}."
    else:
        answer = f"{max(a, b)} is larger than {min(a, b)}."
    return Turn("comparison", question, answer)


def counting(rng: Random, side: Side) -> Turn:
    """How many words, or how often one word, numbering them aloud."""
    if rng.random() < 0.5:
        return _count_one(rng, side)
    while True:
        words = [any_word(rng) for _ in range(rng.randint(2, 10))]
        if side.owns("count", *words):
            break
    question = fill(side.phrasing(rng, "count_words", COUNT_WORDS), list=joined(rng, words))
    aloud = ", ".join(f"{word} {number}" for number, word in enumerate(words, 1))
    return Turn("counting", question, f"{aloud}. That makes {len(words)} words.", score="exact")


def _count_one(rng: Random, side: Side) -> Turn:
    while True:
        kinds = things(rng, rng.randint(2, 4))
        words = [rng.choice(kinds) for _ in range(rng.randint(3, 10))]
        if side.owns("count", *words):
            break
    word = kinds[0]
    question = fill(side.phrasing(rng, "count_one", COUNT_ONE), word=word, list=joined(rng, words))
    seen, aloud = 0, []
    for each in words:
        seen += each == word
        aloud.append(f"{each} {seen}")
    times = "once" if seen == 1 else f"{seen} times"
    return Turn("counting", question, f"{', '.join(aloud)}. So {word} occurs {times}.")


def joined(rng: Random, words: list[str]) -> str:
    """A list as people write it: with commas, or with spaces alone."""
    return (", " if rng.random() < 0.7 else " ").join(words)
