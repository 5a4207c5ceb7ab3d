"""Perplexity: how surprised a model is by a text, with the number of tokens and the standard error.

Method: the text is encoded once and cut into windows that do not overlap; every token of a window but its first is
scored given the tokens of the window before it. Where the tokenizer begins every text with a special token, every
window begins with it, and then each token of the text is scored. This file knows nothing of files or of how
log-probabilities are made.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvik.errors import InvalidRequestError

Score = Callable[[list[list[int]]], list[list[float]]]
"""Windows of token ids to the log-probabilities of all tokens of each but its first."""


@dataclass(frozen=True)
class Perplexity:
    """The result. `nll` is the mean negative log-likelihood per token, in nats."""

    tokens: int
    windows: int
    window: int
    nll: float
    standard_error: float
    """Of `nll`: standard deviation over tokens / sqrt(tokens). Neighbouring tokens are not independent, so the true
    error is somewhat larger.
    """

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return math.exp(self.nll)

    @property
    def perplexity_error(self) -> float:
        """Standard error of the perplexity, to first order."""
        return self.perplexity * self.standard_error

    def as_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return {
            "kind": "perplexity",
            "tokens": self.tokens,
            "windows": self.windows,
            "window": self.window,
            "nll": self.nll,
            "standard_error": self.standard_error,
            "perplexity": self.perplexity,
            "perplexity_error": self.perplexity_error,
            "how_obtained": (
                "mean over tokens of -log p(token | tokens before it in its window); windows of the given length that "
                "do not overlap; the first token of a window is not scored"
            ),
        }


def cut_windows(tokens: Sequence[int], window: int, head: Sequence[int]) -> list[list[int]]:
    """Windows of at most `window` tokens, each beginning with `head`; one that would score nothing is left out."""
    size = window - len(head)
    pieces = [[*head, *tokens[start : start + size]] for start in range(0, len(tokens), size)]
    return [piece for piece in pieces if len(piece) > 1]


def measure_perplexity(tokens: Sequence[int], window: int, head: Sequence[int], score: Score) -> Perplexity:
    """Score a text of these tokens. `head` is what the tokenizer puts before every text.

    Raises InvalidRequestError if the text or the window is too short to score two tokens.
    """
    if window < len(head) + 2:
        raise InvalidRequestError(f"window is {window}; expected at least {len(head) + 2}", param="window")
    windows = cut_windows(tokens, window, head)
    losses = [-logprob for scored in score(windows) for logprob in scored]
    if len(losses) < 2:
        raise InvalidRequestError(f"the text has {len(tokens)} tokens; expected at least 3", param="text")
    error = statistics.stdev(losses) / math.sqrt(len(losses))
    return Perplexity(len(losses), len(windows), window, math.fsum(losses) / len(losses), error)
