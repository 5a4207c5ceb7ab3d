"""The requests and replies of /tokenize and /detokenize, in the form in which vLLM has them.

/tokenize takes a prompt or a conversation and says what token ids the endpoint of that kind would make of it. Knows
nothing of tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvik.server.protocol.conversation import Conversation, read_conversation
from kvik.server.protocol.errors import bad_request
from kvik.server.protocol.fields import read_model
from kvik.server.protocol.readers import are_token_ids, expected, flag, listed, optional, required, text
from kvik.server.protocol.reasoning import TokenBytes
from kvik.server.protocol.sse import to_json
from kvik.server.protocol.terms import Terms, too_long

MAX_IDS = 2**22


@dataclass(frozen=True)
class TokenizeCall:
    """What to make token ids of: `prompt`, or else `conversation`."""

    model: str | None
    """None: whichever model there is."""
    prompt: str | None = None
    conversation: Conversation | None = None
    add_special_tokens: bool = True
    """For a prompt; a template writes its own."""
    with_strings: bool = False
    """Also say how each token is spelled."""


@dataclass(frozen=True)
class DetokenizeCall:
    """Which token ids to make text of."""

    model: str | None
    token_ids: list[int]


def _optional_model(body: dict[str, Any]) -> str | None:
    return None if body.get("model") is None else read_model(body)


def read_tokenize(body: dict[str, Any], terms: Terms) -> TokenizeCall:
    """The call in a body. Raises ApiError."""
    model = _optional_model(body)
    with_strings = optional(body, "return_token_strs", flag, False)
    if body.get("messages") is not None:
        if body.get("prompt") is not None:
            raise bad_request("prompt and messages are both given; expected one of them", "prompt")
        return TokenizeCall(model, conversation=read_conversation(body, terms), with_strings=with_strings)
    prompt = required(body, "prompt", text(2**62))
    if len(prompt) > terms.max_text_chars:
        raise too_long("prompt has", len(prompt), terms, "prompt")
    return TokenizeCall(model, prompt, None, optional(body, "add_special_tokens", flag, True), with_strings)


def read_detokenize(body: dict[str, Any], terms: Terms) -> DetokenizeCall:
    """The call in a body. Raises ApiError."""

    def read(value: Any, param: str) -> list[int]:
        items = listed(value, param, 0, MAX_IDS, "token ids")
        if items and not are_token_ids(items, terms.vocab_size):
            wrong = next(item for item in items if not are_token_ids([item], terms.vocab_size))
            raise expected(wrong, param, f"token ids, whole numbers from 0 to {terms.vocab_size - 1}")
        return items

    return DetokenizeCall(_optional_model(body), required(body, "tokens", read))


def tokenize_body(token_ids: Sequence[int], max_model_len: int, token_bytes: TokenBytes | None = None) -> bytes:
    """The reply of /tokenize; with `token_bytes`, tokens are spelled too, part of a character as U+FFFD."""
    spelled = [token_bytes(each).decode(errors="replace") for each in token_ids] if token_bytes else None
    counts = {"count": len(token_ids), "max_model_len": max_model_len}
    return to_json(counts | {"tokens": list(token_ids), "token_strs": spelled})


def detokenize_body(prompt: str) -> bytes:
    """The reply of /detokenize."""
    return to_json({"prompt": prompt})
