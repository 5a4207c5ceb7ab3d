"""The text of one chat answer as parts of a message: reasoning, content and tool calls.

A stream gives the parts out as they come; a whole reply merges them as a client would, so both are the same message by
construction. Knows nothing of tokens or of the wire.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvik.server.protocol.reasoning import ReasoningSplitter, Thinking
from kvik.server.protocol.tool_calls import CallStyle, Delta, ToolCallParser
from kvik.server.protocol.tool_choice import ToolRules

MAX_PIECE = 4096
"""Characters that parsers get at once: they cut text at every tag, which takes long in a long text full of them."""


def new_call_id() -> str:
    """A name for a call that no other call has."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True)
class Reading:
    """How the text of a model's answers is to be read."""

    thinking: Thinking | None = None
    """None: text is never reasoning."""
    certain_calls: bool = False
    """A grammar makes every tool call well formed, so that its arguments may be shown before they end."""
    new_call_id: Callable[[], str] = new_call_id


class AnswerParser:
    """Reads the text of one choice. `calls` says whether a tool was called."""

    def __init__(self, rules: ToolRules | None, reading: Reading) -> None:
        self._splitter = ReasoningSplitter(reading.thinking) if reading.thinking else None
        style = CallStyle(rules.parallel, reading.certain_calls, reading.new_call_id) if rules else None
        self._parser = ToolCallParser(style) if style else None
        self.is_plain = self._splitter is None and self._parser is None
        """Text is content, and nothing is held back."""

    @property
    def reasons(self) -> bool:
        return self._splitter is not None and self._splitter.began

    @property
    def calls(self) -> bool:
        return self._parser is not None and self._parser.has_calls

    def push(self, text: str) -> list[Delta]:
        """The parts that the next piece of text makes certain."""
        if len(text) <= MAX_PIECE or self.is_plain:
            return self._push(text)
        pieces = (text[at : at + MAX_PIECE] for at in range(0, len(text), MAX_PIECE))
        return [delta for piece in pieces for delta in self._push(piece)]

    def _push(self, text: str) -> list[Delta]:
        if self._splitter is None:
            return self._read(text)
        return self._sort(self._splitter.push(text))

    def finish(self) -> list[Delta]:
        """The text has ended: what was held back."""
        found = self._sort(self._splitter.finish()) if self._splitter else []
        return found + (self._parser.finish() if self._parser else [])

    def _read(self, text: str) -> list[Delta]:
        if self._parser is not None:
            return self._parser.push(text)
        return [{"content": text}] if text else []

    def _sort(self, pieces: list[tuple[Any, str]]) -> list[Delta]:
        found: list[Delta] = []
        for side, piece in pieces:
            found += [{"reasoning_content": piece}] if side == "reasoning" else self._read(piece)
        return found


class Message:
    """The message that parts add up to."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []

    def add(self, delta: Delta) -> None:
        """Merge a part, as clients of a stream do."""
        self._content.append(delta.get("content", ""))
        self._reasoning.append(delta.get("reasoning_content", ""))
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(self._calls):
                function = dict(call["function"])
                self._calls.append({"id": call["id"], "type": "function", "function": function})
            else:
                self._calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]

    def as_dict(self) -> dict[str, Any]:
        """The message of a reply. Its content is null only beside tool calls."""
        content = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reasoning := "".join(self._reasoning):
            message["reasoning_content"] = reasoning
        if self._calls:
            message["content"] = content or None
            message["tool_calls"] = self._calls
        return message
