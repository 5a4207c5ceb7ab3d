"""What is said of each rung in the plan that this ladder follows, and what we find: side by side, with the reason.

A claim is a range for the ratio of two sides in one metric, or for one side's own figure. Ours is read off a result's
own summaries, so that a reader can do it again. The reasons are ours. This file knows nothing of how sides are run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kvik.bench.identities import Check, same, verdict


@dataclass(frozen=True)
class Claim:
    """`b` over `a` in `metric` is said to lie from `low` to `high`; without `a` it is the figure of `b` itself."""

    rung: str
    preset: str
    says: str
    """The claim in words."""
    a: str | None
    b: str
    metric: str
    low: float
    high: float
    reason: str
    """Why ours may differ."""


CLAIMS = (
    Claim(
        "M2", "rungs", "3 to 5 times the tokens/s of static batches", "M1", "M2", "tokens_per_s", 3, 5,
        "A static batch lasts as long as its longest answer, so the gain is the longest over the mean, cut by two "
        "things: the last long answers decode with few beside them, and a step with more rows takes longer.",
    ),
    Claim(
        "M2", "rungs", "time per output token 2 to 3 times lower", "M1", "M2", "tpot_s", 1 / 3, 1 / 2,
        "The gain of continuous batching is in seats that are never empty, not in faster steps. A step with all seats "
        "taken takes longer than one in which most requests of a static batch have ended, so TPOT can only rise.",
    ),
    Claim(
        "M3", "rungs", "KV utilisation about 25 % in the layout before", None, "M2", "kv_utilisation", 0.15, 0.30,
        "The share is the mean length so far over the room reserved for the longest request: it is a property of the "
        "workload.",
    ),
    Claim(
        "M3", "rungs", "KV utilisation about 96 % with blocks of 16", None, "M3", "kv_utilisation", 0.95, 1.0,
        "Only the last block of a request has empty slots, half a block on average. Our smallest block has 32 tokens, "
        "and the share is taken over all steps, the early ones with short sequences included.",
    ),
    Claim(
        "M3", "rungs", "twice as many requests fit", "M2", "M3", "largest_batch", 2, 1e9,
        "Room for the longest request over room for the mean one.",
    ),
    Claim(
        "M3", "rungs", "1.5 times the tokens/s, from larger batches", "M2", "M3", "tokens_per_s", 1.5, 1e9,
        "More requests decode together, but the run still lasts as long as its longest answer.",
    ),
    Claim(
        "M4", "long-prompts", "time to first token 20 to 30 % lower", "M3", "M4", "ttft_s", 0, 0.8,
        "On a GPU the score matrix goes through slow memory, and not writing it is the gain. On a CPU the scores of a "
        "few rows stay in cache either way, and most of a prompt's time is the products of the linear layers.",
    ),
    Claim(
        "M4", "long-prompts", "attention's memory 10 times smaller", "M3", "M4", "activations_bytes", 0, 0.1,
        "Our naive attention holds all scores of a few query rows at a time and never the whole matrix, so there is "
        "little to save; and all buffers of a step are counted here, most of which have nothing to do with attention.",
    ),
    Claim(
        "M5", "stall", "worst wait of a decode halved by a long prompt in pieces", "M4", "M5", "itl_max_s", 0, 0.5,
        "A decode waits for one piece in place of the whole prompt: prompt length over tokens per step.",
    ),
    Claim(
        "M5", "stall", "total throughput about the same", "M4", "M5", "tokens_per_s", 0.95, 1e9,
        "Pieces read the weights again for every piece; decodes that share a piece's step get their weights for free.",
    ),
    Claim(
        "M6", "prefixes", "first token twice as soon at 50 % hits", "M6 0%", "M6 50%", "ttft_s", 0, 0.5,
        "The rest of a prompt still attends to all of it, and one step is the least.",
    ),
    Claim(
        "M6", "prefixes", "first token 5 times as soon at 80 % hits", "M6 0%", "M6 80%", "ttft_s", 0, 0.2,
        "The rest of a prompt still attends to all of it; few rows use the machine less well than many.",
    ),
    Claim(
        "M6", "prefixes", "first token 10 times as soon at 95 % hits", "M6 0%", "M6 95%", "ttft_s", 0, 0.1,
        "One step that reads all weights is the least, however few tokens it computes.",
    ),
    Claim(
        "M7", "rungs", "weights take 75 % less memory", "M6", "M7", "weights_bytes", 0, 0.27,
        "Four bits and, for every 32 weights, a scale of 16 bits and a zero point of 8: 4.75 bits a weight are 70 % "
        "less than 16. Norms stay in 32 bits.",
    ),
    Claim(
        "M7", "rungs", "time per output token 20 to 50 % lower", "M6", "M7", "tpot_s", 0, 0.8,
        "Where a step waits for weights, fewer bytes are less time; where it waits for products, unpacking adds to it.",
    ),
    Claim(
        "M7", "rungs", "two to three times as many requests fit", "M6", "M7", "largest_batch", 2, 1e9,
        "The memory that the weights give up goes to KV cache: how much that is depends on how large the model is "
        "beside the cache.",
    ),
)  # fmt: skip


def compare_claims(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claims about this result's preset with our figures."""
    preset, known = result["workload"]["preset"], result["sides"]
    chosen = [claim for claim in CLAIMS if claim.preset == preset and {claim.b, claim.a or claim.b} <= known.keys()]
    return [asdict(claim) | _judge(result, asdict(claim)) for claim in chosen]


def _judge(result: Mapping[str, Any], claim: Mapping[str, Any]) -> dict[str, Any]:
    """A claim that nothing changes needs no effect to be shown; that something does change, or does not, needs one."""
    ours, stands_out = _ours(result, claim)
    inside = claim["low"] <= ours <= claim["high"]
    of_no_change = claim["a"] is not None and claim["low"] <= 1 <= claim["high"]
    return {
        "ours": ours,
        "shown": stands_out or (inside and of_no_change),
        "holds": inside and (stands_out or of_no_change),
    }


def _ours(result: Mapping[str, Any], claim: Mapping[str, Any]) -> tuple[float, bool]:
    """Our figure, and whether it stands out from the control; a side's own figure always does."""
    if claim["a"] is None:
        return float(result["sides"][claim["b"]]["metrics"][claim["metric"]]["median"]), True
    wanted = {key: claim[key] for key in ("a", "b", "metric")}
    pair = next(pair for pair in result["pairs"] if wanted.items() <= pair.items())
    return float(pair["ratio"]["median"]), bool(pair["beyond_control"])


def claims_check(result: Mapping[str, Any]) -> Check:
    """That our figures beside the claims are those of the result."""
    return verdict("our figures beside the claims are the result's", list(_wrong_claims(result)), "as computed again")


def _wrong_claims(result: Mapping[str, Any]) -> Iterator[str]:
    for claim in result["claims"]:
        again = _judge(result, claim)
        for key, value in again.items():
            if not same(claim.get(key), value):
                yield f"{claim['rung']}, {claim['says']}: {key} is {claim.get(key)}, computed {value}"


def perplexity_change_percent(sides: Mapping[str, Mapping[str, Any]]) -> float:
    """Of the last side against the first, in percent."""
    first, *_, last = (side["perplexity"] for side in sides.values())
    return 100 * (float(last) / float(first) - 1)


def quality_check(result: Mapping[str, Any]) -> Check:
    """That perplexities are those of the likelihoods beside them, and the change that of the perplexities."""
    sides, wrong = result["quality"]["sides"], []
    for name, side in sides.items():
        if not same(side["perplexity"], math.exp(side["nll"])):
            wrong.append(f"{name}: exp({side['nll']}) is not {side['perplexity']}")
        tasks = side["tasks"]
        if tasks and not same(tasks["accuracy"], tasks["right"] / tasks["count"]):
            wrong.append(f"{name}: {tasks['right']} of {tasks['count']} is not a share of {tasks['accuracy']}")
    if not same(result["quality"]["perplexity_change_percent"], perplexity_change_percent(sides)):
        wrong.append("the change is not that of the perplexities")
    return verdict("quality follows from what was scored", wrong, "as computed again")
