"""Terms: what a call is held against that depends on the model and the machine, not on the protocol.

Checks that need token ids or blocks are the engine's; what can be told from a body alone is refused before a tokenizer
sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvik.server.protocol.errors import CONTEXT_LENGTH, ApiError, bad_request


@dataclass(frozen=True)
class Terms:
    """The terms on which one model is served."""

    vocab_size: int = 2**31
    """Token ids are below this."""
    max_model_len: int = 2**31
    """Longest prompt plus answer, in tokens."""
    max_text_chars: int = 2**22
    """Longest text of one call, in characters: what one cares to tokenize."""
    max_choices: int = 1024
    """Most choices of one call: prompts times n."""
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    """What the model's makers recommend, by the names of SamplingParams; used where a call says nothing."""


def too_long(what: str, chars: int, terms: Terms, param: str) -> ApiError:
    """400: `what` is more text than the model's context could hold, whatever its tokens."""
    message = (
        f"This model's maximum context length is {terms.max_model_len} tokens; {what} {chars} characters; expected at "
        f"most {terms.max_text_chars}"
    )
    return bad_request(message, param, CONTEXT_LENGTH)
