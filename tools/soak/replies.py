"""Replies held against what they must be: one way for whole ones, one for streams, both ending in the same record.

A reply is judged by its form (the order of a stream, one end for each choice, all keys of an error) and by its text.
What a stream said before it was cut off must be the beginning of the right answer. Knows nothing of connections.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tools.soak.asks import CHAT, Ask, Expected

ERROR_KEYS = {"message", "type", "param", "code"}


class WrongError(Exception):
    """Something came that must not."""


def require(claim: bool, *said: Any) -> None:
    """Raises WrongError unless a claim holds."""
    if not claim:
        raise WrongError(" ".join(map(str, said))[:600])


def check_error(status: int, headers: Mapping[str, str], body: Any) -> str:
    """The code of a refusal, or its status."""
    require(set(body) == {"error"} and set(body["error"]) == ERROR_KEYS, "an error of another form:", body)
    require("x-request-id" in headers, "an error without x-request-id")
    require(status not in (429, 503) or "retry-after" in headers, status, "without Retry-After")
    return str(body["error"]["code"] or status)


def check_whole(ask: Ask, body: Any) -> None:
    """A reply that was not streamed."""
    expected = ask.expected
    choices = sorted(body["choices"], key=lambda choice: choice["index"])
    require([choice["index"] for choice in choices] == list(range(len(expected))), "choices:", choices)
    tokens = 0
    for choice, right in zip(choices, expected, strict=True):
        text = choice["message"]["content"] if ask.path == CHAT else choice["text"]
        tokens += check_choice(text or "", choice["finish_reason"], choice.get("stop_reason"), right)
    is_late = any(choice.get("stop_reason") == "deadline" for choice in choices)
    check_usage(ask, body["usage"], None if is_late else tokens)


def check_choice(text: str, finish_reason: str, stop_reason: Any, right: Expected) -> int:
    """One choice; the number of its tokens, if it ended by itself."""
    if stop_reason == "deadline":
        # What was held back because it might become a stop string is given out when the answer is cut off.
        require(right.uncut.startswith(text.rstrip("\ufffd")) and finish_reason == "length", text, "is late;", right)
        return 0
    require((text, finish_reason) == (right.text, right.finish_reason), repr(text), finish_reason, "is not", right)
    return right.num_tokens


def check_usage(ask: Ask, usage: Any, completion_tokens: int | None) -> None:
    """The counts; None: as many as there were before the deadline, which nobody else knows."""
    counted = usage["completion_tokens"]
    at_most = sum(choice.num_tokens for choice in ask.expected)
    right = 0 <= counted <= at_most if completion_tokens is None else counted == completion_tokens
    require(right, "completion_tokens", counted, "expected", completion_tokens)
    require(usage["prompt_tokens"] == ask.num_prompt_tokens, usage, "expected a prompt of", ask.num_prompt_tokens)
    require(usage["total_tokens"] == usage["prompt_tokens"] + counted, usage)
    require(0 <= usage["prompt_tokens_details"]["cached_tokens"] < ask.num_prompt_tokens, usage)


class StreamCheck:
    """A stream, event by event."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.error: str | None = None
        """Of the event that ended it, if one did."""
        self._expected = ask.expected
        self._texts = [""] * len(self._expected)
        self._ends: dict[int, tuple[str, Any]] = {}
        self._roles: Counter[int] = Counter()
        self._ids: set[str] = set()
        self._usage: Any = None
        self._done = False

    def push(self, data: str) -> None:
        """The data of the next event."""
        require(not self._done and self.error is None, "after the end:", data)
        if data == "[DONE]":
            self._done = True
            return
        event = json.loads(data)
        if "error" in event:
            require(set(event["error"]) == ERROR_KEYS, "an error of another form:", event)
            self.error = str(event["error"]["code"] or event["error"]["type"])
            return
        self._ids.add(event["id"])
        require(self._usage is None, "an event after the usage:", data)
        if event["choices"]:
            self._push_choices(event["choices"])
        else:
            require("usage" in event, "an event with nothing:", data)
            self._usage = event["usage"]

    def _push_choices(self, choices: Sequence[Any]) -> None:
        for choice in choices:
            index = choice["index"]
            require(index not in self._ends, "choice", index, "goes on after its end")
            if self.ask.path == CHAT:
                self._roles[index] += "role" in choice["delta"]
                self._texts[index] += choice["delta"].get("content") or ""
            else:
                self._texts[index] += choice["text"]
            if choice["finish_reason"] is not None:
                self._ends[index] = (choice["finish_reason"], choice.get("stop_reason"))

    def check_beginning(self) -> None:
        """What came of a stream that was cut off."""
        for text, right in zip(self._texts, self._expected, strict=True):
            require(right.text.startswith(text.rstrip("\ufffd")), repr(text), "does not begin", right)
        require(len(self._ids) <= 1, "several ids:", self._ids)

    def check_end(self) -> None:
        """A stream that came to an end by itself."""
        require(self._done, "no [DONE]")
        require(set(self._ends) == set(range(len(self._expected))), "ends:", self._ends)
        tokens = sum(
            check_choice(text, *self._ends[index], right)
            for index, (text, right) in enumerate(zip(self._texts, self._expected, strict=True))
        )
        require(len(self._ids) == 1, "several ids:", self._ids)
        if self.ask.path == CHAT:
            require(all(self._roles[index] == 1 for index in range(len(self._expected))), "roles:", self._roles)
        require((self._usage is not None) == ("stream_options" in self.ask.body), "usage:", self._usage)
        if self._usage is not None:
            is_late = any(stop == "deadline" for _, stop in self._ends.values())
            check_usage(self.ask, self._usage, None if is_late else tokens)
