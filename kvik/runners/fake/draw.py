"""Drawing and scoring for many contexts at once: `oracle.py` in arrays.

Draws with a bias or a mask, which are rare, are left to the oracle's own functions. This file knows nothing of slots
or faults.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint import fake
from kvik.checkpoint.fake import FakeOptions
from kvik.runners.fake import oracle
from kvik.runners.fake.cache import Contexts
from kvik.runners.fake.hashing import mix_all
from kvik.runners.reference.sampling import allowed
from kvik.step import Float32, Int32, SamplePlan, TopLogprobs, UInt64, as_int32

Float64 = NDArray[np.float64]

SHARE = math.log((1 - oracle.DECAY) / (1 - oracle.DECAY ** (fake.VOCAB_SIZE - 1)))
"""Of the probability that the likeliest token leaves, the part of the next, as a logarithm."""


def next_tokens(contexts: Contexts, keys: UInt64, options: FakeOptions) -> Int32:
    """`oracle.next_token` of each context with its key, without bans, [N]."""
    low, high = options.length
    spread = mix_all(contexts.root_state ^ keys ^ np.uint64(oracle.LENGTH)) % np.uint64(high - low + 1)
    length = low + spread.astype(np.int64)
    if options.text == "ascii":
        count = np.full(len(length), fake.NUM_ASCII)
    else:
        count = fake.NUM_WHOLE + (contexts.answered + 1 < length)
    after_head = contexts.last == fake.HEAD_ID
    first = np.where(after_head, fake.FIRST_TAIL, fake.FIRST_PIECE)
    count = np.where(after_head, len(fake.TAILS), count)
    drawn = first + (mix_all(contexts.digest ^ keys) % count.astype(np.uint64)).astype(np.int64)
    return as_int32(np.where(contexts.answered >= length, fake.IM_END, drawn))


def draw(plan: SamplePlan, contexts: Contexts, options: FakeOptions) -> Int32:
    """The token of each draw [S] after its context [S]; -1 where every token is banned or masked."""
    keys = np.where(plan.temperature > 0, mix_all(plan.seeds), np.uint64(0))
    tokens = next_tokens(contexts, keys, options)
    for s in np.flatnonzero(_special(plan)).tolist():
        mask, banned = allowed(plan, s, fake.VOCAB_SIZE), _banned(plan, s)
        if mask is None:
            tokens[s] = oracle.next_token(_single(contexts, s), int(keys[s]), options, banned)
        else:
            left = [token for token in np.flatnonzero(mask).tolist() if token not in banned]
            tokens[s] = oracle.masked_token(_single(contexts, s), int(keys[s]), left)
    return tokens


def _special(plan: SamplePlan) -> NDArray[np.bool_]:
    """[S] whether a draw has a bias or a mask."""
    biased = np.diff(plan.bias_start) > 0
    return biased | (plan.mask_index >= 0) if len(plan.masks) else biased


def _banned(plan: SamplePlan, s: int) -> set[int]:
    """The tokens that draw s must not give."""
    span = slice(plan.bias_start[s], plan.bias_start[s + 1])
    banned: set[int] = set(plan.bias_tokens[span][plan.bias_values[span] <= oracle.BANNED].tolist())
    return banned


def _single(contexts: Contexts, index: int) -> oracle.Context:
    return oracle.Context(
        int(contexts.digest[index]),
        int(contexts.last[index]),
        int(contexts.answered[index]),
        int(contexts.root_state[index]),
    )


def logprobs(contexts: Contexts, tokens: Int32, num_top: Int32, options: FakeOptions) -> TopLogprobs:
    """Log-probabilities of tokens [N] after their contexts [N], and of the num_top likeliest; where num_top is -1
    nothing is said.
    """
    asked = num_top >= 0
    values = np.zeros(len(tokens), np.float32)
    if not asked.any():
        return TopLogprobs(values, np.zeros((len(tokens), 0), np.int32), np.zeros((len(tokens), 0), np.float32))
    top, certainty = _likeliest(contexts, options)
    values[asked] = _logprob(certainty, (tokens - top) % fake.VOCAB_SIZE)[asked]
    ranks = np.arange(num_top.max(), dtype=np.int32)
    given = ranks < num_top[:, None]
    ids = np.where(given, (top[:, None] + ranks) % fake.VOCAB_SIZE, -1)
    likely = np.where(given, _logprob(certainty[:, None], ranks), np.float32(0))
    return TopLogprobs(values, as_int32(ids), likely)


def erase(table: TopLogprobs, failed: NDArray[np.bool_], value: float = 0.0) -> None:
    """Leave nothing in the entries [N] that failed but this value in place of a log-probability."""
    table.logprobs[failed] = value
    table.top_ids[failed] = -1
    table.top_logprobs[failed] = 0


def logits(contexts: Contexts, options: FakeOptions) -> Float32:
    """Logits after each context, [N, vocab_size]: log-probabilities, whose log-softmax is themselves."""
    top, certainty = _likeliest(contexts, options)
    return _logprob(certainty[:, None], (np.arange(fake.VOCAB_SIZE) - top[:, None]) % fake.VOCAB_SIZE)


def _likeliest(contexts: Contexts, options: FakeOptions) -> tuple[Int32, Float64]:
    """The likeliest token after each context and its probability, [N]."""
    salted = mix_all(contexts.digest ^ np.uint64(oracle.CERTAINTY)) % np.uint64(400)
    return next_tokens(contexts, np.zeros_like(salted), options), 0.5 + salted.astype(np.float64) / 1000


def _logprob(certainty: Float64, ranks: Int32) -> Float32:
    """Log-probability of the token that stands so many ids after the likeliest."""
    others = np.log(1 - certainty) + SHARE + (ranks - 1) * math.log(oracle.DECAY)
    return np.where(ranks == 0, np.log(certainty), others).astype(np.float32)
