"""How an answer ended, in the words of the API.

The API has stop, length, tool_calls and content_filter, and typed clients know no others. A deadline that passes after
the first token is therefore `length`, since a limit cut the answer short, and `stop_reason` beside it says `deadline`.
A deadline before the first token, an abort and an error are no ways to end: they raise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvik.engine.remote.frames import Update
from kvik.request import FinishReason, SamplingParams
from kvik.server.protocol.errors import SERVER, ApiError, aborted, deadline_exceeded


@dataclass(frozen=True)
class Ending:
    """Why a choice ended, and what ended it: a stop string or stop token of the request, or `deadline`."""

    finish_reason: str
    stop_reason: str | int | None = None

    def with_calls(self, calls: bool) -> Ending:
        """An answer that stopped after calling tools ended with tool calls."""
        return Ending("tool_calls") if calls and self.finish_reason == "stop" else self

    def as_dict(self) -> dict[str, Any]:
        """Keys of a choice; `stop_reason` is beyond the API and is left out where it says nothing."""
        extra = {} if self.stop_reason is None else {"stop_reason": self.stop_reason}
        return {"finish_reason": self.finish_reason} | extra


def check_failure(update: Update, num_tokens: int) -> None:
    """Raise ApiError if an update says that its request failed; `num_tokens` have been generated so far."""
    if update.finish_reason == FinishReason.ERROR.value:
        raise ApiError(500, SERVER, None, "the model failed while it computed this answer")
    if update.finish_reason == FinishReason.ABORT.value:
        raise aborted()
    if update.finish_reason == FinishReason.DEADLINE.value and not num_tokens:
        raise deadline_exceeded()


def ending(update: Update, params: SamplingParams) -> Ending | None:
    """How this update's choice ended, if it did. The model's own end tokens are not named."""
    if update.finish_reason is None:
        return None
    if update.finish_reason == FinishReason.DEADLINE.value:
        return Ending("length", "deadline")
    asked_for = isinstance(update.stop_reason, str) or update.stop_reason in params.stop_token_ids
    return Ending(update.finish_reason, update.stop_reason if asked_for else None)
