"""Turn: a question with its one right answer. Conversation: what is trained on. This file knows nothing of tasks.

`weight` is how much each token of the answer counts in training; `score` says how an answer is judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Turn:
    """One question and answer."""

    task: str
    question: str
    answer: str
    weight: float = 1.0
    score: str = "exact"
    """exact, number (the last one), or json."""
    topic: str = ""
    """What a follow-up would be about."""


@dataclass(frozen=True)
class Conversation:
    """Turns in order, perhaps after a system message."""

    turns: tuple[Turn, ...]
    system: str = ""
    plain: bool = False
    """Without roles: the question is text, and the answer its continuation."""

    def messages(self) -> list[dict[str, str]]:
        """As a chat template takes it, answers included."""
        said = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            said.append({"role": "user", "content": turn.question})
            said.append({"role": "assistant", "content": turn.answer})
        return said


def loosen(rng: Random, question: str) -> str:
    """A question as people type it: now and then without a capital, without its last mark, or with a greeting."""
    roll = rng.random()
    if roll < 0.12:
        question = question[:1].lower() + question[1:]
    elif roll < 0.2:
        question = question.lower()
    if rng.random() < 0.18 and question[-1:] in "?.":
        question = question[:-1]
    return question
