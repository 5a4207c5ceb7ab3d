"""What the tests of the protocol share: a toy vocabulary, updates as an engine sends them, and a reader of streams."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from typing import Any

from kvik.engine.remote.frames import Update
from kvik.request import Logprob, TokenLogprobs
from kvik.server.protocol.answer import Reading
from kvik.server.protocol.chat import ChatCall, read_chat
from kvik.server.protocol.completions import CompletionCall, read_completion
from kvik.server.protocol.sse import ReplyHead
from kvik.server.protocol.terms import Terms

EOS = 256
TERMS = Terms(vocab_size=300, max_model_len=64)
HEAD = ReplyHead("chatcmpl-1", 1_700_000_000, "toy", "fp_toy")
HELLO = [{"role": "user", "content": "Hello"}]


def token_bytes(token_id: int) -> bytes:
    """Tokens 0 to 255 are bytes; 256 ends an answer."""
    return bytes([token_id]) if token_id < 256 else b"<|end|>"


def chat(**fields: Any) -> ChatCall:
    """A chat call with these fields beside the ones it must have."""
    return read_chat({"model": "toy", "messages": HELLO, **fields}, TERMS)


def completion(**fields: Any) -> CompletionCall:
    """A completion call with these fields beside the ones it must have."""
    return read_completion({"model": "toy", "prompt": "ab", **fields}, TERMS)


def scored(token_ids: Iterable[int]) -> list[TokenLogprobs]:
    """Entries with a log-probability that tells the token."""
    return [TokenLogprobs(i, -i / 100, (Logprob(i, -i / 100), Logprob((i + 1) % 256, -9.0))) for i in token_ids]


def update(text: str, ids: Sequence[int] | None = None, *, index: int = 0, **more: Any) -> Update:
    """An update of a byte-wise model; `logprobs=True` scores its tokens, False does not."""
    token_ids = list(text.encode()) if ids is None else list(ids)
    if isinstance(more.get("logprobs"), bool):
        more["logprobs"] = scored(token_ids) if more["logprobs"] else None
    return Update("r", index, text, token_ids, **more)


def pieces_of(text: str, rng: random.Random) -> list[str]:
    """A text cut at random places."""
    cuts = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(0, 8)))
    return [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


def reading(**options: Any) -> Reading:
    """A reading whose calls are named call_0, call_1 and so on."""
    numbers = itertools.count()
    return Reading(new_call_id=lambda: f"call_{next(numbers)}", **options)


def events(data: bytes) -> list[Any]:
    """The objects of a stream; [DONE] as that string. Fails on anything that is not in the form of an event."""
    found: list[Any] = []
    assert data.endswith(b"\n\n")
    for event in data[:-2].split(b"\n\n"):
        assert event.startswith(b"data: ")
        assert len(event.decode().splitlines()) == 1
        found.append("[DONE]" if event[6:] == b"[DONE]" else json.loads(event[6:]))
    return found


def merged(chunks: Iterable[dict[str, Any]], index: int = 0) -> tuple[dict[str, Any], str | None]:
    """The message and finish reason that a client makes of a stream's chunks, and that order is kept on the way."""
    message: dict[str, Any] = {"content": ""}
    calls: list[dict[str, Any]] = []
    finish = None
    for choice in (c for chunk in chunks for c in chunk["choices"] if c["index"] == index):
        assert finish is None, "nothing follows the finish reason"
        delta, finish = choice["delta"], choice["finish_reason"]
        if "role" in delta:
            assert "role" not in message
            message["role"] = delta["role"]
        for key in ("content", "reasoning_content"):
            if delta.get(key):
                message[key] = message.get(key, "") + delta[key]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(calls)
                assert call["function"]["arguments"] == ""
                calls.append({"id": call["id"], "type": call["type"], "function": dict(call["function"])})
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    if calls:
        message["tool_calls"] = calls
        message["content"] = message["content"] or None
    return message, finish
