"""The answer to a chat call, whole: what updates add up to, as one `chat.completion`.

`ChatAnswer` turns updates into parts of messages; the stream in chat_stream.py gives the same parts out one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvik.engine.remote.frames import Update
from kvik.request import TokenLogprobs
from kvik.server.protocol.answer import AnswerParser, Message, Reading
from kvik.server.protocol.chat import ChatCall
from kvik.server.protocol.finish import Ending, check_failure, ending
from kvik.server.protocol.logprobs import TextTokens, chat_entries
from kvik.server.protocol.reasoning import ReasoningCount, TokenBytes
from kvik.server.protocol.sse import ReplyHead, to_json
from kvik.server.protocol.tool_calls import Delta
from kvik.server.protocol.usage import Tally


@dataclass(frozen=True)
class Part:
    """What one update adds to one choice."""

    deltas: list[Delta]
    entries: list[TokenLogprobs]
    ending: Ending | None


class ChatChoice:
    """One choice of a chat call, from updates to parts."""

    def __init__(self, call: ChatCall, reading: Reading, token_bytes: TokenBytes) -> None:
        self._params = call.params
        self._parser = AnswerParser(call.rules, reading)
        self._tokens = None if call.params.logprobs is None else TextTokens(call.params.stop, token_bytes)
        self._count = ReasoningCount(reading.thinking, token_bytes) if reading.thinking else None
        self.is_plain = self._parser.is_plain and self._tokens is None
        """Every piece of text is one delta of content and nothing else."""

    def take(self, update: Update) -> Part:
        """The part that an update adds."""
        if self._count is not None:
            self._count.push(update.token_ids)
        deltas = self._parser.push(update.text)
        end = ending(update, self._params)
        if end is not None:
            deltas += self._parser.finish()
            end = end.with_calls(self._parser.calls)
        return Part(deltas, self._tokens.push(update) if self._tokens is not None else [], end)

    @property
    def reasoning_tokens(self) -> int:
        return self._count.num_tokens if self._count is not None and self._parser.reasons else 0


class ChatReply:
    """Collects the updates of one call. `is_finished` once every choice has ended."""

    def __init__(
        self,
        head: ReplyHead,
        call: ChatCall,
        num_prompt_tokens: int,
        token_bytes: TokenBytes,
        reading: Reading | None = None,
    ) -> None:
        self._head = head
        self._call = call
        self._token_bytes = token_bytes
        choices = range(call.params.n)
        self._choices = [ChatChoice(call, reading or Reading(), token_bytes) for _ in choices]
        self._messages = [Message() for _ in choices]
        self._entries: list[list[TokenLogprobs]] = [[] for _ in choices]
        self._endings: dict[int, Ending] = {}
        self._tally = Tally([num_prompt_tokens])

    @property
    def is_finished(self) -> bool:
        return len(self._endings) == self._call.params.n

    def push(self, update: Update) -> None:
        """Take in an update. Raises ApiError if it says that the request failed."""
        self._tally.count(update)
        check_failure(update, self._tally.output_tokens)
        part = self._choices[update.index].take(update)
        for delta in part.deltas:
            self._messages[update.index].add(delta)
        self._entries[update.index] += part.entries
        if part.ending is not None:
            self._endings[update.index] = part.ending

    def body(self) -> bytes:
        """The reply; every choice must have ended."""
        self._tally.reasoning_tokens = sum(choice.reasoning_tokens for choice in self._choices)
        choices = [self._choice(index) for index in range(self._call.params.n)]
        head = self._head.as_dict("chat.completion")
        return to_json(head | {"choices": choices, "usage": self._tally.as_dict()})

    def _choice(self, index: int) -> dict[str, object]:
        wanted = self._call.params.logprobs is not None
        logprobs = chat_entries(self._entries[index], self._token_bytes) if wanted else None
        message = self._messages[index].as_dict()
        return {"index": index, "message": message, "logprobs": logprobs} | self._endings[index].as_dict()
