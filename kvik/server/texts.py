"""Texts: everything slow that is done to text, in threads beside the event loop.

Prompts and conversations to token ids, grammars from what clients ask for. The library that tokenizes lets other
threads run meanwhile; templates are Python and share. Long texts have a thread of their own, so that a short one never
waits for them; how long a text may be was settled before it comes here. Knows nothing of HTTP or of queues.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

from kvik.errors import InvalidRequestError
from kvik.server.protocol.completions import Prompt
from kvik.server.protocol.conversation import Conversation
from kvik.server.protocol.errors import bad_request
from kvik.server.protocol.final_message import cut_after_text
from kvik.server.protocol.reasoning import Thinking
from kvik.server.protocol.structure import Structure
from kvik.text.marking import strings_of
from kvik.text.tokenizer import Tokenizer

LONG_CHARS = LARGE_BODY = 65536
TAIL_TOKENS = 32
"""Enough of a prompt's end to see whether it opens thoughts."""
T = TypeVar("T")
Thoughts = Literal["none", "may", "opened"]


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the engine gets it."""

    token_ids: list[int]
    thinking: Thinking | None = None
    """How the answer's thoughts are marked, if the model has any."""
    thoughts: Thoughts = "none"
    """Whether the answer begins with thoughts: no, if the model likes, or certainly, since the prompt opens them."""


class Texts:
    """One tokenizer and the threads that use it; None for a model that reads token ids only."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._short = ThreadPoolExecutor(2, thread_name_prefix="text")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="long-text")
        self._thinks: bool | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's. Raises ApiError if it has none."""
        if self._tokenizer is None:
            raise bad_request("this model has no tokenizer; give the prompt as token ids", "prompt")
        return self._tokenizer

    def close(self) -> None:
        """Take nothing more; what is under way ends by itself."""
        for pool in (self._short, self._long):
            pool.shutdown(wait=False, cancel_futures=True)

    async def parse(self, work: Callable[[], T], size: int) -> T:
        """Make something of a body of so many bytes: at once if it is small. Raises what `work` does."""
        return work() if size < LARGE_BODY else await self._run(work, 0)

    async def prompts(self, prompts: Sequence[Prompt], add_special_tokens: bool) -> list[list[int]]:
        """Token ids of each prompt. Raises KvikError, ApiError."""
        if all(isinstance(prompt, list) for prompt in prompts):
            return [prompt for prompt in prompts if isinstance(prompt, list)]
        tokenizer = self.tokenizer

        def encode() -> list[list[int]]:
            return [p if isinstance(p, list) else tokenizer.encode(p, add_special_tokens) for p in prompts]

        return await self._run(encode, sum(len(prompt) for prompt in prompts))

    async def chat(self, conversation: Conversation) -> ChatPrompt:
        """A conversation through the model's template. Raises KvikError, ApiError."""
        given = [conversation.messages, conversation.tools or []]
        return await self._run(lambda: self._encode_chat(conversation), sum(map(len, strings_of(given))))

    async def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        tokenizer = self.tokenizer
        return await self._run(lambda: tokenizer.decode(token_ids, skip_special_tokens), 4 * len(token_ids))

    async def grammar(self, structure: Structure, thoughts: Thoughts = "none") -> str:
        """The grammar that a client asks for, compiled once to see that it can be. Raises InvalidRequestError."""
        return await self._run(lambda: _grammar(structure, thoughts), LONG_CHARS)

    def prepare(self) -> Future[str] | None:
        """Import, beside everything else, what the first grammar would wait for; its result is of no use."""
        return self._long.submit(_grammar, Structure("regex", "a", "grammar")) if self._tokenizer else None

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token adds to a text; of a model without text, none."""
        return self._tokenizer.token_bytes(token_id) if self._tokenizer is not None else b""

    def _encode_chat(self, conversation: Conversation) -> ChatPrompt:
        tokenizer = self.tokenizer
        if not tokenizer.has_chat_template:
            raise bad_request("this model has no chat template; give the prompt as text to /v1/completions", "messages")
        given = (conversation.messages, conversation.tools, conversation.add_generation_prompt)
        token_ids = tokenizer.encode_chat(*given, **conversation.variables)
        if conversation.continue_final_message:
            rendered = tokenizer.render_chat(*given, **conversation.variables)
            last = conversation.messages[-1]["content"]
            token_ids = cut_after_text(token_ids, rendered, last, tokenizer.token_bytes)
        return self._with_thoughts(token_ids)

    def _with_thoughts(self, token_ids: list[int]) -> ChatPrompt:
        """A model that has tokens for the tags may think; whether it has begun, or is done, is at the prompt's end."""
        tokenizer = self.tokenizer
        if self._thinks is None:
            self._thinks = all(len(tokenizer.encode(tag, False)) == 1 for tag in (Thinking.begin, Thinking.end))
        if not self._thinks:
            return ChatPrompt(token_ids)
        tail = tokenizer.decode(token_ids[-TAIL_TOKENS:], skip_special_tokens=False)
        thinking = Thinking.after(tail)
        if tail.rstrip().endswith(thinking.end):
            return ChatPrompt(token_ids, thinking, "none")
        return ChatPrompt(token_ids, thinking, "opened" if thinking.opened else "may")

    async def _run(self, work: Callable[[], T], chars: int) -> T:
        pool = self._long if chars >= LONG_CHARS else self._short
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        except RecursionError:
            raise InvalidRequestError("the request is nested too deeply", param="messages") from None


def _grammar(structure: Structure, thoughts: Thoughts = "none") -> str:
    """The grammar of a structure. Raises InvalidRequestError."""
    from kvik.server.grammars import grammar_of  # the library behind it takes a while

    return grammar_of(structure, thoughts)
