"""The answer to a chat call as a stream of events, in the order that the API promises.

Each choice begins with an event that has the role, goes on with its parts and ends with an event that has an empty
delta and the finish reason; then comes usage, if asked for, and [DONE]. Plain text, which is most of what is ever
streamed, takes a path on which only the text itself is encoded.
"""

from __future__ import annotations

from typing import Any

from kvik.engine.remote.frames import Update
from kvik.server.protocol.answer import Reading
from kvik.server.protocol.chat import ChatCall
from kvik.server.protocol.chat_reply import ChatChoice, Part
from kvik.server.protocol.errors import ApiError
from kvik.server.protocol.finish import check_failure
from kvik.server.protocol.logprobs import chat_entries
from kvik.server.protocol.reasoning import TokenBytes
from kvik.server.protocol.sse import DONE, Chunks, ReplyHead, error_event, to_json
from kvik.server.protocol.tool_calls import Delta
from kvik.server.protocol.usage import Tally

_MARK = "\0text\0"


class _ChoiceEvents:
    """One choice of a stream: its parts, and the bytes around its text."""

    def __init__(self, index: int, choice: ChatChoice, chunks: Chunks) -> None:
        self.choice = choice
        self._index = index
        self._chunks = chunks
        self.before, self.after = chunks.around(self._as_dict({"content": _MARK}), _MARK)
        self.is_plain = choice.is_plain
        self.begun = False

    def begin(self) -> bytes:
        """The event with the role."""
        self.begun = True
        return self.event({"role": "assistant", "content": ""})

    def _as_dict(self, delta: Delta, logprobs: Any = None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def event(self, delta: Delta, logprobs: Any = None) -> bytes:
        """An event with one delta."""
        return self._chunks.event(self._as_dict(delta, logprobs))

    def events(self, part: Part, logprobs: Any) -> bytes:
        """The events of a part: log-probabilities go with the first delta, or alone."""
        deltas = part.deltas or ([{}] if logprobs else [])
        events = [self.event(delta, None if place else logprobs) for place, delta in enumerate(deltas)]
        if part.ending is not None:
            events.append(self._chunks.event(self._as_dict({}) | part.ending.as_dict()))
        return b"".join(events)


class ChatStream:
    """Encodes the updates of one call. `is_finished` once every choice has ended."""

    def __init__(
        self,
        head: ReplyHead,
        call: ChatCall,
        num_prompt_tokens: int,
        token_bytes: TokenBytes,
        reading: Reading | None = None,
    ) -> None:
        self._call = call
        self._reading = reading or Reading()
        self._token_bytes = token_bytes
        self._chunks = Chunks(head, "chat.completion.chunk", call.include_usage)
        self._choices: dict[int, _ChoiceEvents] = {}
        self._num_ended = 0
        self._tally = Tally([num_prompt_tokens])

    @property
    def is_finished(self) -> bool:
        return self._num_ended == self._call.params.n

    def push(self, update: Update) -> bytes:
        """The events of an update, perhaps none. Raises ApiError if it says that the request failed: before the first
        event that is a reply of its own, later it goes to `fail`.
        """
        events = self._choices.get(update.index) or self._open(update.index)
        self._tally.count(update)
        if events.is_plain and events.begun and update.finish_reason is None:
            return events.before + to_json(update.text) + events.after if update.text else b""
        check_failure(update, self._tally.output_tokens)
        begin = b"" if events.begun else events.begin()
        part = events.choice.take(update)
        self._num_ended += part.ending is not None
        return begin + events.events(part, chat_entries(part.entries, self._token_bytes) if part.entries else None)

    def _open(self, index: int) -> _ChoiceEvents:
        choice = ChatChoice(self._call, self._reading, self._token_bytes)
        self._choices[index] = _ChoiceEvents(index, choice, self._chunks)
        return self._choices[index]

    def end(self) -> bytes:
        """What follows the last choice's end."""
        if not self._call.include_usage:
            return DONE
        self._tally.reasoning_tokens = sum(events.choice.reasoning_tokens for events in self._choices.values())
        return self._chunks.usage(self._tally.as_dict()) + DONE

    def fail(self, error: ApiError) -> bytes:
        """The last event of a stream that has begun and cannot go on."""
        return error_event(error)
