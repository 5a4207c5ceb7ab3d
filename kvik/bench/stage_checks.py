"""Stages side by side, computed from the stored rounds: speeds, shares of the bare step, and that all answers agree.

This file knows nothing of what a stage does.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvik.bench.identities import Check, same, verdict
from kvik.bench.summary import summarize

Sample = Mapping[str, Any]


def compare_stages(samples: Sequence[Sample]) -> dict[str, Any]:
    """For every stage its speed, its share of the first one's, and what it adds to the one before it for each token.

    Ratios and differences are taken within a round, then their median.
    """
    names = list(samples[0]["stages"])
    compared: dict[str, Any] = {}
    for place, name in enumerate(names):
        own = [sample["stages"][name] for sample in samples]
        bare = [sample["stages"][names[0]] for sample in samples]
        before = [sample["stages"][names[max(place - 1, 0)]] for sample in samples]
        shares = [each["tokens_per_s"] / least["tokens_per_s"] for each, least in zip(own, bare, strict=True)]
        added = [
            1e3 * (each["seconds"] / each["tokens"] - less["seconds"] / less["tokens"])
            for each, less in zip(own, before, strict=True)
        ]
        compared[name] = {
            "speed": summarize([each["tokens_per_s"] for each in own], metric="tokens_per_s", unit="tokens/s"),
            "share": summarize(shares, metric="share", unit="of the bare step"),
            "added_ms_per_token": statistics.median(added),
        }
    return compared


def stage_checks(result: Mapping[str, Any]) -> list[Check]:
    """The identities of a result of stages. Raises KeyError and the like for one that is malformed."""
    samples, asked = result["samples"], result["workload"]["tokens_per_sample"]
    stored = result.get("stages")
    wrong = [] if stored is None or same(stored, compare_stages(samples)) else ["computed again they differ"]
    return [
        verdict("stages follow from the samples", wrong, "as computed again"),
        verdict("every stage gave the tokens asked for", list(_counts(samples, asked)), f"{asked} each"),
        verdict("all stages answered the same", list(_differences(samples)), "tokens, and text where there is any"),
        verdict("the bare step is the sample", list(_bare(samples)), "in every round"),
    ]


def _counts(samples: Sequence[Sample], asked: int) -> Iterator[str]:
    for number, sample in enumerate(samples, 1):
        for name, stage in sample["stages"].items():
            if stage["tokens"] != asked:
                yield f"round {number}: {name} gave {stage['tokens']} of {asked}"


def _differences(samples: Sequence[Sample]) -> Iterator[str]:
    for number, sample in enumerate(samples, 1):
        for kind in ("tokens_digest", "text_digest"):
            found = {name: stage[kind] for name, stage in sample["stages"].items() if stage[kind] is not None}
            if len(set(found.values())) > 1:
                yield f"round {number}: {kind} differs: {found}"


def _bare(samples: Sequence[Sample]) -> Iterator[str]:
    for number, sample in enumerate(samples, 1):
        first = next(iter(sample["stages"].values()))
        if any(not same(sample[name], first[name]) for name in ("seconds", "tokens")):
            yield f"round {number}: the sample is not its first stage"
