"""The figures of a comparison, computed from what its result stores, and the identities that they must satisfy.

Stored are sums over blocks of consecutive tokens, of each model: losses, divergences from the reference, agreements;
and the largest divergences, down to the 99th percentile. So a reader computes every figure and its error again. The
difference of two models is taken block by block: what makes a block hard for both cancels. This file knows nothing of
how any of it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvik.bench.identities import Check, same, verdict
from kvik.bench.perplexity import Float64, bits_per_byte, block_sums, error_of_mean
from kvik.bench.summary import summarize

PERCENTILE = 99


@dataclass(frozen=True)
class Scores:
    """Of one model, for every scored position in order."""

    losses: Float64
    """[N] -log p(token), in nats."""
    divergences: Float64
    """[N] from the reference's distribution, in nats."""
    agrees: Float64
    """[N] 1 where the most likely token is the reference's, else 0."""


def tail_length(count: int) -> int:
    """How many of `count` values are stored: those from the 99th percentile up, which is the smallest value that at
    least 99 % do not exceed.
    """
    return count - -(-PERCENTILE * count // 100) + 1


def stored_scores(scores: Scores) -> dict[str, Any]:
    """What a result keeps of a model's scores."""
    count = len(scores.losses)
    largest = np.sort(scores.divergences)[::-1][: tail_length(count)]
    return {
        "nll_sums": block_sums(scores.losses).tolist(),
        "divergence_sums": block_sums(scores.divergences).tolist(),
        "agreed": [int(each) for each in block_sums(scores.agrees)],
        "largest_divergences": largest.tolist(),
    }


def text_figures(
    sizes: Sequence[int], own: Mapping[str, Any], reference: Mapping[str, Any], text: Mapping[str, Any]
) -> dict[str, Any]:
    """Perplexity, its paired difference to the reference, divergence and agreement, from stored sums."""
    count, sums = sum(sizes), own["nll_sums"]
    nll = math.fsum(sums) / count
    moved = [b - a for a, b in zip(reference["nll_sums"], sums, strict=True)]
    difference, error = math.fsum(moved) / count, error_of_mean(moved, sizes)
    return {
        "nll": nll,
        "standard_error": error_of_mean(sums, sizes),
        "perplexity": math.exp(nll),
        "bits_per_byte": bits_per_byte(nll, text["text_tokens"], text["text_bytes"]),
        "nll_difference": difference,
        "nll_difference_error": error,
        "perplexity_change_percent": 100 * math.expm1(difference),
        "perplexity_change_error_percent": 100 * math.exp(difference) * error,
        "divergence_mean": math.fsum(own["divergence_sums"]) / count,
        "divergence_mean_error": error_of_mean(own["divergence_sums"], sizes),
        "divergence_p99": own["largest_divergences"][-1],
        "agreement": sum(own["agreed"]) / count,
    }


def speed_figures(samples: Sequence[Mapping[str, Any]], label: str) -> dict[str, Any]:
    """Time per output token of one model, and how many times as fast as the reference it is within a round."""
    runs = [sample["others"].get(label, sample) for sample in samples]
    ratios = [sample["tpot_s"] / run["tpot_s"] for sample, run in zip(samples, runs, strict=True)]
    return {
        "tpot_s": summarize([run["tpot_s"] for run in runs], metric="tpot_s", unit="s"),
        "times_as_fast": summarize(ratios, metric="times as fast", unit="x"),
    }


def task_figures(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy's difference to the reference, with the standard error of a difference of paired answers."""
    gained, lost, count = tasks["gained"], tasks["lost"], tasks["count"]
    difference = (gained - lost) / count
    spread = max(0.0, (gained + lost) / count - difference**2)
    return {"difference": difference, "difference_error": math.sqrt(spread / count)}


def figures_of(result: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Every figure of one model that follows from what is stored."""
    judged = result["judged"]
    own, reference = judged["sides"][label], judged["sides"][judged["reference"]]
    text = text_figures(judged["block_tokens"], own["scores"], reference["scores"], judged)
    answered = {"tasks": task_figures(own["tasks"])} if own["tasks"] else {}
    return {"text": text, "speed": speed_figures(result["samples"], label), **answered}


def judge_checks(result: Mapping[str, Any]) -> list[Check]:
    """Every identity of a comparison, computed again from its stored sums and samples."""
    judged, tokens = result["judged"], result["workload"]["scored_tokens"]
    sides, sizes = judged["sides"], judged["block_tokens"]
    reference = sides[judged["reference"]]
    wrong: dict[str, Callable[[str, Mapping[str, Any]], list[str]]] = {
        "figures follow from the stored sums": lambda label, side: _not_following(result, label, side),
        "every model is scored on the same tokens": lambda _, side: _not_scored(side["scores"], sizes, tokens),
        "losses and divergences are finite and not below 0": lambda _, side: _unsound(side["scores"], sizes),
        "memory parts of a model sum to the whole": lambda _, side: _not_whole(side["memory_bytes"]),
        "right answers = the reference's + gained - lost": lambda _, side: _not_counted(reference, side["tasks"]),
    }
    sound = f"{len(sides)} models, {tokens} tokens"
    found = [
        verdict(name, [f"{label}: {why}" for label, side in sides.items() for why in wrong_in(label, side)], sound)
        for name, wrong_in in wrong.items()
    ]
    return [*found, verdict("the reference differs from itself by nothing", _not_itself(reference), sound)]


def _not_following(result: Mapping[str, Any], label: str, side: Mapping[str, Any]) -> list[str]:
    again = figures_of(result, label)
    return [f"{key} does not" for key in again if not same(side["figures"].get(key), again[key])]


def _not_scored(scores: Mapping[str, Any], sizes: Sequence[int], tokens: int) -> list[str]:
    wrong = [] if sum(sizes) == tokens else [f"blocks have {sum(sizes)} tokens of {tokens}"]
    lengths = {name: len(scores[name]) for name in ("nll_sums", "divergence_sums", "agreed")}
    wrong += [f"{name} has {length} blocks of {len(sizes)}" for name, length in lengths.items() if length != len(sizes)]
    stored, needed = len(scores["largest_divergences"]), tail_length(tokens)
    return wrong + ([f"{stored} of the {needed} largest divergences are stored"] if stored != needed else [])


def _unsound(scores: Mapping[str, Any], sizes: Sequence[int]) -> list[str]:
    wrong = []
    for name in ("nll_sums", "divergence_sums", "largest_divergences"):
        if not all(math.isfinite(value) and value >= 0 for value in scores[name]):
            wrong.append(f"{name} has a value below 0, or none at all")
    if sorted(scores["largest_divergences"], reverse=True) != list(scores["largest_divergences"]):
        wrong.append("largest_divergences are not in order")
    if any(not 0 <= agreed <= size for agreed, size in zip(scores["agreed"], sizes, strict=True)):
        wrong.append("more positions agree than there are")
    return wrong


def _not_whole(memory: Mapping[str, int]) -> list[str]:
    parts = {name: size for name, size in memory.items() if name != "total"}
    return [] if sum(parts.values()) == memory["total"] else [f"{parts} bytes are not {memory['total']}"]


def _not_counted(reference: Mapping[str, Any], tasks: Mapping[str, Any] | None) -> list[str]:
    if tasks is None:
        return []
    expected = reference["tasks"]["right"] + tasks["gained"] - tasks["lost"]
    return [] if tasks["right"] == expected else [f"{tasks['right']} are right; expected {expected}"]


def _not_itself(reference: Mapping[str, Any]) -> list[str]:
    figures = reference["figures"]["text"]
    none = ("nll_difference", "nll_difference_error", "divergence_mean", "divergence_p99")
    wrong = [f"{name} is {figures[name]}" for name in none if figures[name] != 0]
    return wrong + ([f"agreement is {figures['agreement']}"] if figures["agreement"] != 1 else [])
