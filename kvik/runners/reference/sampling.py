"""Drawing tokens and scoring them, in plain numpy: the executable definition of SamplingParams.

Slow and obvious: every filter sorts the whole vocabulary. Logits and weights are float32; weights are summed in
float64, in the order of their ids. The native sampler is held against this file. Where two ways of adding round
differently, they may differ in a token whose uniform number, or whose top_p or min_p boundary, lies within rounding of
the other side. This file knows nothing of models, batches or why a token is wanted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvik.request import MASK64
from kvik.step import Float32, Int32, Int64, SamplePlan, ScorePlan, TopLogprobs, floats, ints

MASK32 = (1 << 32) - 1
COLDEST = np.float32(1e-30)
"""Lower temperatures act as this one, whose inverse is still a float32."""


def philox(seed: int, position: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 of the 128-bit counter `position` under the 64-bit key `seed`: four 32-bit words.

    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = ((position >> shift) & MASK32 for shift in (0, 32, 64, 96))
    key0, key1 = seed & MASK32, (seed >> 32) & MASK32
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ key0, b & MASK32, (a >> 32) ^ c3 ^ key1, a & MASK32
        key0, key1 = (key0 + 0x9E3779B9) & MASK32, (key1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 24 bits, exact in float32: the upper bits of the first word."""
    return (philox(seed & MASK64, position & MASK64)[0] >> 8) / 2**24


def usable(logits: Float32) -> bool:
    """Whether there is something to draw from: no NaN, no +inf, not all -inf."""
    return bool(np.isfinite(logits.max()) and not np.isnan(logits).any())


def ranking(logits: Float32) -> Int64:
    """Ids by descending logit, lower id first among equals."""
    order: Int64 = np.argsort(-logits, kind="stable").astype(np.int64)
    return order


def allowed(plan: SamplePlan, s: int, vocab: int) -> NDArray[np.bool_] | None:
    """[vocab] Whether draw s may give each token; None where it has no mask. Tokens past a mask's end are not in it."""
    if not len(plan.masks) or not 0 <= plan.mask_index[s] < len(plan.masks):
        return None
    tokens = np.arange(vocab)
    words = np.pad(plan.masks[plan.mask_index[s]], (0, -(-vocab // 32)))
    return (words[tokens // 32] >> (tokens % 32).astype(np.uint32) & 1).astype(np.bool_)


def adjusted(plan: SamplePlan, s: int, logits: Float32) -> Float32:
    """The logits of draw s after mask, bias and penalties. Ids outside the vocabulary are ignored."""
    mask = allowed(plan, s, len(logits))
    values: Float32 = logits.copy() if mask is None else np.where(mask, logits, np.float32(-np.inf))
    for i in range(plan.bias_start[s], plan.bias_start[s + 1]):
        if 0 <= plan.bias_tokens[i] < len(values):
            values[plan.bias_tokens[i]] += plan.bias_values[i]
    history = plan.history_tokens[plan.history_start[s] : plan.history_start[s + 1]]
    if len(history) == 0:
        return values
    answer = history[plan.history_prompt[s] :]
    seen = np.unique(history[(history >= 0) & (history < len(values))])
    repeated = values[seen]
    repetition = plan.repetition_penalty[s]
    values[seen] = np.where(repeated > 0, repeated / repetition, repeated * repetition)
    tokens, counts = np.unique(answer[(answer >= 0) & (answer < len(values))], return_counts=True)
    values[tokens] -= plan.presence_penalty[s] + plan.frequency_penalty[s] * counts.astype(np.float32)
    return values


def weights(plan: SamplePlan, s: int, logits: Float32) -> Float32:
    """Weight of every token of draw s, whose temperature is above 0: its probability over that of the likeliest before
    any filter, and 0 for tokens that a filter drops. `logits` are adjusted and usable.
    """
    scaled = (logits - logits.max()) * (np.float32(1) / max(plan.temperature[s], COLDEST))
    weight: Float32 = np.exp(scaled)
    if plan.min_p[s] > 0:
        weight[weight < min(plan.min_p[s], np.float32(1))] = 0
    order = ranking(logits)
    if plan.top_k[s] > 0:
        weight[order[plan.top_k[s] :]] = 0
    if plan.top_p[s] < 1:
        reached = np.cumsum(weight[order], dtype=np.float64)
        enough = reached >= float(plan.top_p[s]) * weight.sum(dtype=np.float64)
        if enough.any():
            weight[order[int(enough.argmax()) + 1 :]] = 0
    return weight


def inverse_cdf(weight: Float32, u: float) -> int:
    """The first index whose cumulated weight exceeds u times the total; never one of weight 0."""
    reached = np.cumsum(weight, dtype=np.float64)
    index = int(np.searchsorted(reached, u * reached[-1], side="right"))
    return min(index, int(np.flatnonzero(weight)[-1]))


def draw_token(plan: SamplePlan, s: int, logits: Float32) -> int:
    """The token of draw s, or -1 if its logits, the model's own or the adjusted ones, are not usable."""
    if not usable(logits):
        return -1
    values = adjusted(plan, s, logits)
    if not usable(values):
        return -1
    if not plan.temperature[s] > 0:
        return int(values.argmax())
    return inverse_cdf(weights(plan, s, values), uniform(int(plan.seeds[s]), int(plan.positions[s])))


def log_softmax(logits: Float32) -> Float32:
    """log-softmax of one row of usable logits."""
    shifted = logits - logits.max()
    total = np.exp(shifted).sum(dtype=np.float64)
    result: Float32 = shifted - np.float32(np.log(total))
    return result


def _empty(count: int, num_top: Int32) -> TopLogprobs:
    width = max(0, int(num_top.max(initial=0)))
    return TopLogprobs(floats(count), np.full((count, width), -1, np.int32), np.zeros((count, width), np.float32))


def _report(out: TopLogprobs, row: int, logits: Float32, token: int, num_top: int) -> None:
    if not usable(logits):
        out.logprobs[row] = np.nan
        return
    values = log_softmax(logits)
    top = ranking(logits)[: max(0, num_top)]
    out.logprobs[row] = values[token]
    out.top_ids[row, : len(top)] = top
    out.top_logprobs[row, : len(top)] = values[top]


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def draw(plan: SamplePlan, logits: Float32) -> tuple[Int32, NDArray[np.bool_], TopLogprobs]:
    """Token ids [S], failed [S] and log-probabilities [S] of a plan's draws; logits [R, V] has a row for each row the
    plan names. A failed draw has token -1 and no log-probabilities.
    """
    tokens, out = ints(len(plan)), _empty(len(plan), plan.num_logprobs)
    for s in range(len(plan)):
        row = logits[plan.rows[s]]
        tokens[s] = draw_token(plan, s, row)
        if tokens[s] >= 0 and plan.num_logprobs[s] >= 0:
            _report(out, s, row, int(tokens[s]), int(plan.num_logprobs[s]))
    return tokens, tokens < 0, out


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def score(plan: ScorePlan, logits: Float32) -> TopLogprobs:
    """Log-probabilities [Q] of a plan's targets; row q of logits [Q, V] belongs to entry q. Where a row holds NaN or
    +inf, or is all -inf, the log-probability is NaN and the ids are -1.
    """
    out = _empty(len(plan), plan.num_top)
    for q in range(len(plan)):
        _report(out, q, logits[q], int(plan.targets[q]), int(plan.num_top[q]))
    return out
