"""Perplexity: how surprised a model is by a text, with the number of tokens and the standard error.

Method: the text is encoded once and cut into windows, each `stride` tokens after the one before; of every window the
tokens that no earlier one scored are scored given the tokens of the window before them. Without overlap the first token
of a window has none before it and is not scored, unless the tokenizer begins every text with a special token: then
every window begins with it. This file knows nothing of files or of how log-probabilities are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.errors import InvalidRequestError

Score = Callable[[list[list[int]]], list[list[float]]]
"""Windows of token ids to the log-probabilities of all tokens of each but its first."""
Float64 = NDArray[np.float64]

MOST_BLOCKS, LEAST_BLOCKS, BLOCK_TOKENS = 64, 8, 32
ERROR_METHOD = (
    "standard errors from blocks of consecutive tokens: at most 64 of them, of at least 32 tokens each where the text "
    "allows for 8; neighbouring tokens depend on each other, and what they share stays within a block"
)


@dataclass(frozen=True)
class Window:
    """Tokens scored together: of `token_ids` the last `scored` ones count."""

    token_ids: list[int]
    scored: int


@dataclass(frozen=True)
class Perplexity:
    """The result. `nll` is the mean negative log-likelihood per token, in nats."""

    tokens: int
    """Scored."""
    windows: int
    window: int
    stride: int
    nll: float
    standard_error: float
    """Of `nll`, from blocks of consecutive tokens (`error_of_mean`)."""
    blocks: int
    text_tokens: int
    text_bytes: int | None = None

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return math.exp(self.nll)

    @property
    def perplexity_error(self) -> float:
        """Standard error of the perplexity, to first order."""
        return self.perplexity * self.standard_error

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per token times tokens per byte of the text, which models with different tokenizers can be compared by;
        None where the text's bytes are not known.
        """
        return bits_per_byte(self.nll, self.text_tokens, self.text_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return {
            "kind": "perplexity",
            "tokens": self.tokens,
            "windows": self.windows,
            "window": self.window,
            "stride": self.stride,
            "nll": self.nll,
            "standard_error": self.standard_error,
            "blocks": self.blocks,
            "perplexity": self.perplexity,
            "perplexity_error": self.perplexity_error,
            "text_tokens": self.text_tokens,
            "text_bytes": self.text_bytes,
            "bits_per_byte": self.bits_per_byte,
            "how_obtained": (
                "mean over tokens of -log p(token | tokens before it in its window); windows of the given length, each "
                "a stride after the one before, of which those tokens count that no earlier one scored; the first "
                f"token of a window is not scored; {ERROR_METHOD}; bits per byte = bits per token x tokens per byte"
            ),
        }


def bits_per_byte(nll: float, text_tokens: int, text_bytes: int | None) -> float | None:
    """From nats per token; None where the text's bytes are not known."""
    return nll / math.log(2) * text_tokens / text_bytes if text_bytes else None


def cut_windows(tokens: Sequence[int], window: int, head: Sequence[int], stride: int | None = None) -> list[Window]:
    """Windows of at most `window` tokens, each beginning with `head`; one that would score nothing is left out.

    Without a stride they do not overlap. Raises InvalidRequestError for a window or a stride that scores nothing.
    """
    size = window - len(head)
    if size < 2:
        raise InvalidRequestError(f"window is {window}; expected at least {len(head) + 2}", param="window")
    if stride is not None and not 1 <= stride <= size:
        raise InvalidRequestError(f"stride is {stride}; expected 1 to {size}", param="stride")
    windows, done = [], 0
    for start in range(0, len(tokens), stride or size):
        end = min(start + size, len(tokens))
        scored = end - done - (done == start and not head)
        if scored > 0:
            windows.append(Window([*head, *tokens[start:end]], scored))
        done = end
    return windows


def block_starts(count: int) -> NDArray[np.intp]:
    """Where each block of consecutive tokens begins: blocks of like size, see ERROR_METHOD."""
    blocks = min(max(count // BLOCK_TOKENS, LEAST_BLOCKS), MOST_BLOCKS, count)
    return np.arange(blocks) * count // blocks


def block_sums(values: NDArray[Any]) -> Float64:
    """[N] values of tokens in their order to the sum of each block."""
    return np.add.reduceat(np.asarray(values, np.float64), block_starts(len(values)))


def error_of_mean(sums: Sequence[float] | Float64, sizes: Sequence[float] | Float64) -> float:
    """Standard error of sum(sums) / sum(sizes): of a ratio of block totals, the blocks taken as independent. 0 for a
    single block, which cannot say.
    """
    totals, counts = np.asarray(sums, np.float64), np.asarray(sizes, np.float64)
    if len(totals) < 2:
        return 0.0
    rest = totals - totals.sum() / counts.sum() * counts
    return float(np.sqrt(len(totals) / (len(totals) - 1) * (rest * rest).sum()) / counts.sum())


def measure_perplexity(
    tokens: Sequence[int],
    window: int,
    head: Sequence[int],
    score: Score,
    *,
    stride: int | None = None,
    text_bytes: int | None = None,
) -> Perplexity:
    """Score a text of these tokens. `head` is what the tokenizer puts before every text.

    Raises InvalidRequestError if the text, the window or the stride is too short to score two tokens.
    """
    windows = cut_windows(tokens, window, head, stride)
    scored = score([each.token_ids for each in windows])
    counted = zip(windows, scored, strict=True)
    losses = [-logprob for each, logprobs in counted for logprob in logprobs[len(logprobs) - each.scored :]]
    if len(losses) < 2:
        raise InvalidRequestError(f"the text has {len(tokens)} tokens; expected at least 3", param="text")
    sums, sizes = block_sums(np.array(losses)), block_sums(np.ones(len(losses)))
    return Perplexity(
        tokens=len(losses),
        windows=len(windows),
        window=window,
        stride=stride or window - len(head),
        nll=math.fsum(losses) / len(losses),
        standard_error=error_of_mean(sums, sizes),
        blocks=len(sums),
        text_tokens=len(tokens),
        text_bytes=text_bytes,
    )
