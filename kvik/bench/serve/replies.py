"""What comes back: a body, or a stream of events with the moment at which each was there.

A moment is when the bytes were handed over by the system, taken once for all that came together. Events are decoded
only as far as they are needed: whether there is text, whether it ends, what the usage is. This file knows nothing of
connections.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kvik.errors import KvikError

DONE = b"[DONE]"
SHOWN = 120


class LoadError(KvikError):
    """A request that did not end well. `kind` is what it is counted under."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: Any = None


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float | None] = []
    content: Any = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class Reply:
    """One answer as it comes. Times are on the clock of whoever feeds it."""

    def __init__(self) -> None:
        self.text_times: list[float] = []
        """When each event that carries text was there."""
        self.finish_time: float | None = None
        """When the finish reason was there."""
        self.finish_reason: str | None = None
        self.pieces: list[str] = []
        self.logprobs: list[float | None] = []
        """Of the tokens, where a completion was asked for them."""
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        """None: the server did not say."""
        self.done = False
        self._rest = b""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)

    def feed(self, data: bytes, now: float) -> None:
        """The next bytes of an event stream. Raises LoadError for an event that is none, or says what went wrong."""
        if self._rest:
            data = self._rest + data
        lines = data.split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def whole(self, data: bytes, now: float) -> None:
        """A reply that is no stream. Raises LoadError."""
        self._event(data, now)
        self.done = True

    def _event(self, data: bytes, now: float) -> None:
        if data == DONE:
            self.done = True
            return
        try:
            event = _decode(data)
        except msgspec.MsgspecError as error:
            raise LoadError("malformed", f"{error}: {data[:SHOWN]!r}") from None
        if event.error:
            raise LoadError(f"error {_code(event.error)}", str(event.error)[:SHOWN])
        if event.usage is not None:
            self.input_tokens, self.output_tokens = event.usage.prompt_tokens, event.usage.completion_tokens
        for choice in event.choices:
            self._choice(choice, now)

    def _choice(self, choice: _Choice, now: float) -> None:
        delta = choice.delta or choice.message
        text = choice.text if delta is None else delta.content or delta.reasoning_content
        if choice.logprobs is not None:
            self.logprobs += choice.logprobs.token_logprobs
        if text or (delta is not None and delta.tool_calls):
            self.text_times.append(now)
            self.pieces.append(text or "")
        if choice.finish_reason is not None:
            self.finish_time, self.finish_reason = now, choice.finish_reason


class Document(Reply):
    """A reply that is any JSON, such as statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.value: Any = None

    def whole(self, data: bytes, now: float) -> None:
        """Take it as it is. Raises LoadError if it is not JSON."""
        try:
            self.value = msgspec.json.decode(data)
        except msgspec.MsgspecError as error:
            raise LoadError("malformed", f"{error}: {data[:SHOWN]!r}") from None
        self.finish_time, self.done = now, True


def _code(error: Any) -> str:
    """The code of an error in OpenAI's form, or whatever names it."""
    if not isinstance(error, dict):
        return "unnamed"
    return str(error.get("code") or error.get("type") or "unnamed")


def error_of(status: int, body: bytes) -> LoadError:
    """What a reply with a status other than 200 counts as: `http 429`, with the server's words."""
    try:
        said = msgspec.json.decode(body)
        words = said.get("error", said) if isinstance(said, dict) else said
        words = words.get("message", words) if isinstance(words, dict) else words
    except msgspec.MsgspecError:
        words = body[:SHOWN].decode("utf-8", "replace")
    return LoadError(f"http {status}", str(words)[:SHOWN])
