"""The mixture: which tasks a training document holds, how often, and how long it may be.

A document is a function of (seed, number, longest) alone, so that any part of the training text can be made again. This
file knows nothing of tokens but a rough count.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tools.box.world import chatter, knowledge, lists, needle, numbers, records, stories
from tools.box.world.split import TRAIN, Side, digest
from tools.box.world.turn import Conversation, Turn, loosen

Task = Callable[[Random, Side], Turn]

WEIGHTS: tuple[tuple[Task, float], ...] = (
    (knowledge.definition, 16),
    (knowledge.reason, 10),
    (knowledge.option, 6),
    (knowledge.difference, 4),
    (knowledge.advice, 8),
    (numbers.addition, 14),
    (numbers.comparison, 4),
    (numbers.counting, 6),
    (lists.sorting, 8),
    (lists.reversing, 5),
    (lists.spelling, 2),
    (lists.copying, 10),
    (records.extraction, 14),
    (records.to_json, 8),
    (stories.story, 2),
    (chatter.refusal, 12),
    (chatter.talk, 2),
)
TASKS, ODDS = zip(*WEIGHTS, strict=True)

LOOSE = frozenset(("definition", "reason", "option", "difference", "advice", "refusal", "talk", "story", "follow_up"))
"""Tasks whose questions may lose a capital or a mark: those that hold no text to be kept exactly."""

SYSTEMS = (
    "You are a helpful assistant.",
    "You are Kvik's small model.",
    "Answer briefly.",
    "You help people who serve language models.",
)
CHARACTERS_PER_TOKEN = 3.2
"""Without digits, which are tokens of their own. A low guess, so that what is taken to fit does."""


def task_turn(rng: Random, side: Side = TRAIN) -> Turn:
    """One turn of any task."""
    return loosened(rng, rng.choices(TASKS, ODDS)[0](rng, side))


def loosened(rng: Random, turn: Turn) -> Turn:
    """The turn as people type it, where nothing in the question must be kept exactly."""
    if turn.task not in LOOSE:
        return turn
    return Turn(turn.task, loosen(rng, turn.question), turn.answer, turn.weight, turn.score, turn.topic)


def rough_tokens(turns: list[Turn]) -> int:
    """A guess at the length of a conversation, on the high side."""
    text = "".join(turn.question + turn.answer for turn in turns)
    digits = sum(map(str.isdigit, text))
    return int(1.2 * digits + (len(text) - digits) / CHARACTERS_PER_TOKEN) + 10 * len(turns)


RECALL: tuple[Task, ...] = (
    lists.copying,
    lists.copying,
    lists.reversing,
    lists.spelling,
    records.extraction,
    records.extraction_among,
    records.extraction_among,
)
"""Tasks whose answer stands in the question. Looking back is learned late, and everything exact waits for it."""


def recall_turns(rng: Random, longest: int) -> list[Turn]:
    """Several questions whose answers stand in them, or a short haystack."""
    if rng.random() < 0.3:
        return needle.needle(rng, TRAIN, rng.randint(30, max(50, min(longest, 512) // 2)), rng.randint(2, 6))
    return [rng.choice(RECALL)(rng, TRAIN) for _ in range(rng.randint(1, 6))]


def draw_turns(rng: Random, longest: int, long_share: float, recall_share: float) -> list[Turn]:
    """Turns of one document: one task, a follow-up chain, a haystack with questions, or several tasks in a row."""
    roll = rng.random()
    if roll < long_share and longest > 512:
        return needle.needle(rng, TRAIN, rng.randint(300, min(needle.LONGEST + 80, longest - 300)), rng.randint(5, 16))
    if rng.random() < recall_share:
        return recall_turns(rng, longest)
    roll = rng.random()
    if roll < 0.08:
        return needle.needle(rng, TRAIN, rng.randint(40, max(60, min(longest, 512) * 5 // 8)), rng.randint(1, 6))
    if roll < 0.18:
        return [loosened(rng, turn) for turn in knowledge.follow_ups(rng, TRAIN)]
    if roll < 0.70:
        return [task_turn(rng)]
    return [task_turn(rng) for _ in range(rng.randint(2, 8))]


def document(seed: int, number: int, longest: int, long_share: float = 0.05, recall_share: float = 0.1) -> Conversation:
    """Training document `number`: at most about `longest` tokens. `long_share` of documents have a long prompt, and
    `recall_share` only ask for what stands in them.
    """
    rng = Random(digest("document", seed, number, longest))
    while True:
        turns = draw_turns(rng, longest, long_share, recall_share)
        while rough_tokens(turns) > longest and len(turns) > 1:
            turns = turns[:-1]
        if rough_tokens(turns) <= longest:
            break
    system = rng.choice(SYSTEMS) if rng.random() < 0.05 else ""
    plain = len(turns) == 1 and turns[0].task in ("definition", "story") and rng.random() < 0.08
    return Conversation(tuple(turns), "" if plain else system, plain)
