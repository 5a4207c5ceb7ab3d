"""Tool calls in generated text, as Hermes and Qwen models spell them: `<tool_call>`, a JSON object, `</tool_call>`.

The text may arrive in any pieces; what comes out, merged, is the same as for the whole text at once. Nothing of a tag
is ever given out as content, unless what follows it is no call: then all of it is, as the model wrote it. So a call is
given out when it is complete, except where a grammar has made sure that it will be: then its arguments flow.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from kvik.server.protocol.tags import ObjectScan, undecided

BEGIN = "<tool_call>"
END = "</tool_call>"
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([a-zA-Z0-9_.-]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')
"""The beginning of a call up to its arguments, if they come last and the name needs no unescaping."""

Delta = dict[str, Any]
"""Part of a message in the words of the API: `content`, `reasoning_content` or `tool_calls` with one item."""


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


def parse_call(written: str) -> tuple[str, str] | None:
    """Name and arguments of a call, the arguments as the model wrote them; None if it is no call."""
    try:
        call = msgspec.json.decode(written.encode(), type=_Call)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    arguments = bytes(call.arguments)
    return (call.name, arguments.decode()) if call.name and arguments.startswith(b"{") else None


@dataclass(frozen=True)
class CallStyle:
    """How calls are to be read: whether several may come, whether they are well formed for certain, and their ids."""

    parallel: bool
    certain: bool
    new_id: Callable[[], str]


class ToolCallParser:
    """Finds the calls in the text of one answer."""

    def __init__(self, style: CallStyle) -> None:
        self._style = style
        self._held = ""
        """Text not yet given out. Inside a call: all of it after the tag, or what follows its arguments."""
        self._lead = ""
        """Newlines before the tag, which are content only if there is no call after it."""
        self._inside: ObjectScan | None = None
        """The object after a tag, until it is known what it is."""
        self._scanned = 0
        self._flowing: ObjectScan | None = None
        """The arguments of a call that is being given out, until they end."""
        self._closing = False
        """A call has been given out; its closing tag is still to come."""
        self._after_call = False
        """Space before the next thing is to be dropped."""
        self._num_calls = 0
        """Calls that have ended."""

    @property
    def has_calls(self) -> bool:
        """Whether a call has been given out, or its beginning."""
        return self._num_calls > 0 or self._flowing is not None

    def push(self, text: str) -> list[Delta]:
        """The next piece of text."""
        self._held += text
        found: list[Delta] = []
        while self._step(found):
            pass
        return found

    def finish(self) -> list[Delta]:
        """The text has ended. A call without its closing tag counts if it is whole."""
        found: list[Delta] = []
        while self._inside is not None:
            if not self._inside.ended or not self._give_call(found):
                self._give_back(found)
            while self._step(found):
                pass
        if not self._closing and self._flowing is None:
            self._content(found, self._held)
        self._held = ""
        return found

    def _step(self, found: list[Delta]) -> bool:
        """Take one thing from the held text; whether there may be another."""
        if self._flowing is not None:
            return self._flow(found, self._flowing)
        if self._inside is not None:
            return self._read_call(found, self._inside)
        if self._closing:
            return self._close()
        return self._read_content(found)

    def _content(self, found: list[Delta], text: str) -> None:
        if text:
            found.append({"content": text})

    def _read_content(self, found: list[Delta]) -> bool:
        if self._after_call:
            self._held = self._held.lstrip()
            self._after_call = not self._held
        place = self._held.find(BEGIN)
        if place < 0:
            sure = len(self._held) - undecided(self._held, BEGIN)
            self._content(found, self._held[:sure])
            self._held = self._held[sure:]
            return False
        before = self._held[:place].rstrip("\n")
        self._content(found, before)
        self._lead = self._held[len(before) : place]
        self._held = self._held[place + len(BEGIN) :]
        self._inside, self._scanned = ObjectScan(), 0
        return True

    def _read_call(self, found: list[Delta], scan: ObjectScan) -> bool:
        """Inside a tag: give the call out once it is known, or the text back once it can be none."""
        if self._style.certain and self._begin_flow(found):
            return True
        if not scan.ended:
            self._scanned += scan.feed(self._held[self._scanned :])
        if scan.broken:
            return self._give_back(found)
        if not scan.ended:
            return False
        rest = self._held[self._scanned :].lstrip()
        if END.startswith(rest) and rest != END:
            return False
        if not rest.startswith(END) or not self._give_call(found):
            return self._give_back(found)
        return True

    def _give_back(self, found: list[Delta]) -> bool:
        self._content(found, self._lead + BEGIN)
        self._inside = None
        return True

    def _give_call(self, found: list[Delta]) -> bool:
        call = parse_call(self._held[: self._scanned])
        if call is None:
            return False
        self._start(found, call[0])
        self._arguments(found, call[1])
        self._end_call(self._held[self._scanned :])
        return True

    def _begin_flow(self, found: list[Delta]) -> bool:
        head = _HEAD.match(self._held)
        if head is None:
            return False
        self._start(found, head[1])
        self._held, self._inside, self._flowing = self._held[head.end() :], None, ObjectScan()
        return True

    def _flow(self, found: list[Delta], scan: ObjectScan) -> bool:
        count = scan.feed(self._held)
        self._arguments(found, self._held[:count])
        self._held = self._held[count:]
        if not scan.ended and not scan.broken:
            return False
        self._flowing = None
        self._end_call(self._held)
        return True

    def _end_call(self, rest: str) -> None:
        self._num_calls += 1
        self._held, self._inside, self._closing = rest, None, True

    def _close(self) -> bool:
        """After a call: drop the rest of its object and the closing tag."""
        place = self._held.find(END)
        if place < 0:
            return False
        self._held = self._held[place + len(END) :]
        self._closing, self._after_call = False, True
        return True

    def _start(self, found: list[Delta], name: str) -> None:
        if self._drops_call:
            return
        function = {"name": name, "arguments": ""}
        call = {"index": self._num_calls, "id": self._style.new_id(), "type": "function", "function": function}
        found.append({"tool_calls": [call]})

    def _arguments(self, found: list[Delta], piece: str) -> None:
        if piece and not self._drops_call:
            found.append({"tool_calls": [{"index": self._num_calls, "function": {"arguments": piece}}]})

    @property
    def _drops_call(self) -> bool:
        """A second call where only one is wanted."""
        return self._num_calls > 0 and not self._style.parallel
