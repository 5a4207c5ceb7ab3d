"""Reasoning: what a model thinks aloud, apart from what it answers.

Models of this kind write `<think>`, their thoughts, `</think>`, and the answer; some templates write the first tag
themselves. Tags, and newlines beside them, belong to neither side. The text may arrive in any pieces: the pieces given
out, joined, are the same as for the whole text at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from kvik.server.protocol.tags import undecided

Side = Literal["reasoning", "content"]
TokenBytes = Callable[[int], bytes]


@dataclass(frozen=True)
class Thinking:
    """How a model marks its thoughts, and whether the prompt has opened them already."""

    begin: str = "<think>"
    end: str = "</think>"
    opened: bool = False

    @classmethod
    def after(cls, prompt: str, begin: str = "<think>", end: str = "</think>") -> Thinking:
        """For an answer to this prompt (its last characters will do)."""
        return cls(begin, end, opened=prompt.rstrip().endswith(begin))


class ReasoningSplitter:
    """Splits the text of one answer. `began` says whether there was reasoning."""

    def __init__(self, thinking: Thinking) -> None:
        self._thinking = thinking
        self._held = ""
        self._side: Side | None = "reasoning" if thinking.opened else None
        """None while the text may still begin with the tag."""
        self._at_start = True
        """Newlines are still to be dropped at the beginning of this side."""
        self.began = thinking.opened

    def push(self, text: str) -> list[tuple[Side, str]]:
        """The next piece of text, as pieces of either side that have become certain."""
        self._held += text
        if self._side is None:
            self._decide()
        found: list[tuple[Side, str]] = []
        if self._side == "reasoning":
            found += self._think()
        if self._side == "content":
            found += self._take("content", len(self._held))
        return found

    def _decide(self) -> None:
        stripped = self._held.lstrip()
        if stripped.startswith(self._thinking.begin):
            self._side, self.began = "reasoning", True
            self._held = stripped[len(self._thinking.begin) :]
        elif not self._thinking.begin.startswith(stripped):
            self._side, self._at_start = "content", False

    def _think(self) -> list[tuple[Side, str]]:
        place = self._held.find(self._thinking.end)
        if place < 0:
            return self._take("reasoning", len(self._held) - undecided(self._held, self._thinking.end))
        after = self._held[place + len(self._thinking.end) :]
        self._held = self._held[:place].rstrip("\n")
        found = self._take("reasoning", len(self._held))
        self._held, self._side, self._at_start = after, "content", True
        return found

    def _take(self, side: Side, count: int) -> list[tuple[Side, str]]:
        piece, self._held = self._held[:count], self._held[count:]
        if self._at_start:
            piece = piece.lstrip("\n")
            self._at_start = not piece
        return [(side, piece)] if piece else []

    def finish(self) -> list[tuple[Side, str]]:
        """The text has ended: what was held back. Thoughts that were never closed stay thoughts."""
        if self._side is None:
            self._side, self._at_start = "content", False
        return self._take(self._side, len(self._held))


class ReasoningCount:
    """How many tokens of an answer are reasoning: those up to the one that completes the closing tag."""

    def __init__(self, thinking: Thinking, token_bytes: TokenBytes) -> None:
        self._end = thinking.end.encode()
        self._token_bytes = token_bytes
        self._tail = b""
        self._closed = False
        self.num_tokens = 0

    def push(self, token_ids: Sequence[int]) -> None:
        """The next tokens of the answer."""
        for token_id in token_ids:
            if self._closed:
                return
            self.num_tokens += 1
            seen = self._tail + self._token_bytes(token_id)
            self._closed = self._end in seen
            self._tail = seen[1 - len(self._end) :]
