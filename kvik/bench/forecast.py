"""What a load will see, forecast from what a step costs: TTFT, TPOT and throughput of clients in a closed loop.

Steady state, equal requests: every step serves all rows, prompts ride along in chunks. A request then causes a fixed
amount of work, and with b requests at once each of them lasts b times its own. Good for "what if", not for promises.
This file knows nothing of engines or clocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvik.bench.step_cost import StepCost


@dataclass(frozen=True)
class Demand:
    """What clients ask: so many at once, tokens in (of which so many come from a cache), tokens out."""

    concurrency: int
    input_len: int
    output_len: int
    cached: int = 0


@dataclass(frozen=True)
class Forecast:
    """What they will see, times in milliseconds."""

    ttft_ms: float
    tpot_ms: float
    tokens_per_s: float
    rows: int
    """Requests in a step."""


def forecast(cost: StepCost, demand: Demand, max_num_seqs: int, max_num_batched_tokens: int) -> Forecast:
    """Of this demand under these options."""
    rows = min(demand.concurrency, max_num_seqs)
    chunk = max(1, max_num_batched_tokens - rows + 1)
    new, after = max(1, demand.input_len - demand.cached), demand.output_len - 1
    chunks = math.ceil(new / chunk)
    context = demand.input_len + demand.output_len / 2
    prompt = cost.per_token * new + cost.per_kv * (demand.cached * new + new * (new + 1) / 2) + cost.per_row * chunks
    decodes = after * (cost.per_token + cost.per_row + cost.per_kv * context)
    work = prompt + decodes + cost.fixed * (after + chunks) / rows
    alone = prompt + chunks * cost.fixed
    first = alone + chunks * (cost.decode(rows - 1, context) - cost.fixed if rows > 1 else 0.0)
    whole = max(rows * work, first)
    waiting = (demand.concurrency / rows - 1) * whole
    tpot = (whole - first) / after if after else 0.0
    return Forecast(1e3 * (waiting + first), 1e3 * tpot, demand.output_len / work, rows)


def most_rows(cost: StepCost, context: float, tpot_ms: float, limit: int) -> int:
    """Most rows that can decode at this context with steps no longer than so; 0 if one alone cannot."""
    one, each = cost.decode(1, context), cost.decode(2, context) - cost.decode(1, context)
    if 1e3 * one > tpot_ms:
        return 0
    return limit if each <= 0 else min(limit, 1 + int((tpot_ms / 1e3 - one) / each))


def largest_chunk(cost: StepCost, rows: int, context: float, step_ms: float) -> int:
    """Most tokens of a prompt that can ride along with this many decodes in a step no longer than so."""
    room = step_ms / 1e3 - cost.decode(rows, context) - cost.per_row
    each = cost.per_token + cost.per_kv * context
    return max(0, int(room / each)) if each > 0 else 0
