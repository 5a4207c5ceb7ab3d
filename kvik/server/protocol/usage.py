"""Usage: the tokens of one call, counted as they come.

Each prompt counts once however many choices it has; every generated token counts, the one that ended the answer
included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvik.engine.remote.frames import Update


class Tally:
    """Counts for one call with these numbers of tokens in its prompts."""

    def __init__(self, prompt_tokens: Sequence[int]) -> None:
        self._prompt_tokens = sum(prompt_tokens)
        self._cached = [0] * len(prompt_tokens)
        self.output_tokens = 0
        self.reasoning_tokens = 0

    def count(self, update: Update, prompt: int = 0) -> None:
        """Take in the next update for one of the prompts."""
        self.output_tokens += len(update.token_ids)
        if update.num_cached_tokens > self._cached[prompt]:
            self._cached[prompt] = update.num_cached_tokens

    def as_dict(self, counted: bool = True) -> dict[str, Any]:
        """The `usage` of a reply; unless `counted`, what was generated is not part of it."""
        output = self.output_tokens if counted else 0
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": output,
            "total_tokens": self._prompt_tokens + output,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached)},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }
