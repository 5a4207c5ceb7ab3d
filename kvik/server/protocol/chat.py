"""A request for a chat completion, from a JSON object to a checked `ChatCall`.

Knows nothing of which models are served, of tokenizers or of engines. A call says everything about itself that they
need, and nothing of the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvik.request import MAX_LOGPROBS, SamplingParams
from kvik.server.protocol import conversation
from kvik.server.protocol.conversation import Conversation, read_conversation
from kvik.server.protocol.errors import bad_request
from kvik.server.protocol.fields import (
    MAX_TOKENS,
    PRIORITY,
    ignored_fields,
    read_model,
    read_sampling,
    read_stream,
    refuse_unsupported,
)
from kvik.server.protocol.readers import flag, optional, whole
from kvik.server.protocol.structure import Structure, read_structure
from kvik.server.protocol.terms import Terms
from kvik.server.protocol.tool_choice import ToolRules

OWN = (*conversation.FIELDS, "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "priority")


@dataclass(frozen=True)
class ChatCall:
    """One request for a chat completion. `params` has no grammar yet: `structure` says what to make it from."""

    model: str
    conversation: Conversation
    params: SamplingParams
    structure: Structure | None = None
    stream: bool = False
    include_usage: bool = False
    priority: int = 0
    ignored: tuple[str, ...] = ()
    """Names of fields that nobody knows, quoted, for a log."""

    @property
    def rules(self) -> ToolRules | None:
        """The tools to look for in the answer."""
        return self.conversation.rules

    @property
    def param_names(self) -> dict[str, str]:
        """What the engine's parameters are called in this call."""
        return {"prompt": "messages"} | ({"grammar": self.structure.param} if self.structure else {})


def read_chat(body: dict[str, Any], terms: Terms) -> ChatCall:
    """The call in a body. Raises ApiError."""
    model = read_model(body)
    refuse_unsupported(body, ())
    conversation = read_conversation(body, terms)
    structure, rules = read_structure(body), conversation.rules
    stream, include_usage = read_stream(body)
    return ChatCall(
        model=model,
        conversation=conversation,
        params=read_sampling(body, terms, max_tokens=_read_max_tokens(body), logprobs=_read_logprobs(body)),
        structure=rules.structure(structure) if rules else structure,
        stream=stream,
        include_usage=include_usage,
        priority=optional(body, "priority", PRIORITY, 0),
        ignored=ignored_fields(body, OWN),
    )


def _read_max_tokens(body: dict[str, Any]) -> int | None:
    """The newer name wins over the deprecated one. None: what the context holds."""
    tokens = whole(1, MAX_TOKENS)
    old, new = optional(body, "max_tokens", tokens), optional(body, "max_completion_tokens", tokens)
    found: int | None = old if new is None else new
    return found


def _read_logprobs(body: dict[str, Any]) -> int | None:
    """How many of the likeliest tokens to name beside each drawn one. None: no log-probabilities at all."""
    wanted = optional(body, "logprobs", flag, False)
    top: int = optional(body, "top_logprobs", whole(0, MAX_LOGPROBS), 0)
    if top and not wanted:
        raise bad_request(f"top_logprobs is {top} without logprobs; expected logprobs to be true", "top_logprobs")
    return top if wanted else None
