"""The answer to a completion call as a stream of events.

Each choice ends with an event that has no text and the finish reason; then comes usage, if asked for, and [DONE].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvik.engine.remote.frames import Update
from kvik.server.protocol.completion_reply import CompletionAnswer, EncodedPrompt, Part
from kvik.server.protocol.completions import CompletionCall
from kvik.server.protocol.errors import ApiError
from kvik.server.protocol.reasoning import TokenBytes
from kvik.server.protocol.sse import DONE, Chunks, ReplyHead, error_event, to_json

_MARK = "\0text\0"


def _as_dict(index: int, text: str, logprobs: Any = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}


class CompletionStream:
    """Encodes the updates of one call. `is_finished` once every choice has ended."""

    def __init__(
        self, head: ReplyHead, call: CompletionCall, prompts: Sequence[EncodedPrompt], token_bytes: TokenBytes
    ) -> None:
        self._call = call
        self._answer = CompletionAnswer(call, prompts, token_bytes)
        self._chunks = Chunks(head, "text_completion", call.include_usage)
        self._around: dict[int, tuple[bytes, bytes]] = {}

    @property
    def is_finished(self) -> bool:
        return self._answer.is_finished

    def push(self, prompt: int, update: Update) -> bytes:
        """The events of an update for one of the prompts, perhaps none. Raises ApiError if it says that the request
        failed: before the first event that is a reply of its own, later it goes to `fail`.
        """
        if not self._answer.is_plain or update.finish_reason is not None:
            return b"".join(map(self._events, self._answer.push(prompt, update)))
        self._answer.tally.count(update, prompt)
        return self._text_event(prompt * self._call.params.n + update.index, update.text) if update.text else b""

    def _text_event(self, index: int, text: str) -> bytes:
        around = self._around.get(index)
        if around is None:
            around = self._around[index] = self._chunks.around(_as_dict(index, _MARK), _MARK)
        return around[0] + to_json(text) + around[1]

    def _events(self, part: Part) -> bytes:
        logprobs = part.logprobs if part.logprobs and part.logprobs["tokens"] else None
        events = b""
        if part.text or logprobs:
            events = self._chunks.event(_as_dict(part.index, part.text, logprobs))
        if part.ending is not None:
            events += self._chunks.event(_as_dict(part.index, "") | part.ending.as_dict())
        return events

    def end(self) -> bytes:
        """What follows the last choice's end."""
        return (self._chunks.usage(self._answer.usage()) if self._call.include_usage else b"") + DONE

    def fail(self, error: ApiError) -> bytes:
        """The last event of a stream that has begun and cannot go on."""
        return error_event(error)
