"""The arithmetic of a result: summary and limits from raw samples, and the identities that hold them together.

Everything here is a function of the stored samples, so that whoever reads a result file can compute it again. This
file knows nothing of files, models or machines.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kvik.bench.identities import Check as Check
from kvik.bench.identities import identity_checks, same, verdict
from kvik.bench.judge_figures import judge_checks
from kvik.bench.ladder.claims import claims_check, quality_check
from kvik.bench.serve.checks import serve_checks
from kvik.bench.sides import side_checks
from kvik.bench.stage_checks import stage_checks
from kvik.bench.summary import CONFIDENCE as CONFIDENCE
from kvik.bench.summary import median_spread_percent as median_spread_percent
from kvik.bench.summary import summarize as summarize
from kvik.errors import KvikError

Sample = Mapping[str, Any]


class EvidenceError(KvikError):
    """A result contradicts itself or a physical limit, or is not a result at all."""


def limits_of(samples: Sequence[Sample], summary: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """What the machine allows, and the fraction reached.

    `stated` holds `capacity_metric` (which field of a sample is the machine's capacity, measured beside it, per
    second), `cost` (how much of it one unit of the summary's metric needs) and `does_not_bind` (None, or why the
    limit is none here). The roof is the median capacity over the cost; the best roof, which no median may exceed, the
    largest capacity over it. The fraction is the median of every sample's own, each against the capacity measured
    around it: on a shared machine both move together.
    """
    if not stated.get("capacity_metric"):
        return {**stated, "fraction": None}
    capacities = [float(sample[stated["capacity_metric"]]) for sample in samples]
    rates = [float(sample[summary["metric"]]) for sample in samples]
    fractions = [rate * stated["cost"] / capacity for rate, capacity in zip(rates, capacities, strict=True)]
    return {
        **stated,
        "capacity": statistics.median(capacities),
        "roof": statistics.median(capacities) / stated["cost"],
        "best_roof": max(capacities) / stated["cost"],
        "fraction": statistics.median(fractions),
        "fraction_spread_percent": median_spread_percent(fractions),
    }


def compare_engines(samples: Sequence[Sample], metric: str, unit: str) -> dict[str, Any]:
    """For every peer that stands in the samples: its own speed, and how many times as fast the measured engine is.

    A ratio is taken within each sample, where both ran one after the other, never between medians.
    """
    return {
        label: {
            "speed": summarize([float(sample["peers"][label][metric]) for sample in samples], metric=metric, unit=unit),
            "ratio": summarize(
                [sample[metric] / sample["peers"][label][metric] for sample in samples], metric="ratio", unit="x"
            ),
        }
        for label in samples[0]["peers"]
    }


def run_checks(result: Mapping[str, Any]) -> list[Check]:
    """Every identity that a result must satisfy, computed again from its raw samples.

    Raises EvidenceError if the result is too malformed to be computed with.
    """
    try:
        checks = [
            _summary(result),
            _positive(result),
            *identity_checks(result["samples"], result["machine"].get("cores")),
            _tokens(result),
            _limits(result),
            _physics(result),
            *([_peers(result), _asked(result)] if "comparison" in result else []),
            *(side_checks(result) if "sides" in result else []),
            *([claims_check(result)] if "claims" in result else []),
            *([quality_check(result)] if "quality" in result else []),
            *([_saving(result)] if "saving" in result else []),
            *([_efficiency(result)] if "efficiency" in result else []),
            *(serve_checks(result) if "slo" in result["workload"] else []),
            *(stage_checks(result) if "stages" in result["workload"] else []),
            *(judge_checks(result) if "judged" in result else []),
        ]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise EvidenceError(f"the result is malformed: {type(error).__name__}: {error}") from error
    return checks


def refuse_failed(checks: Sequence[Check]) -> None:
    """Raise EvidenceError naming every check that failed."""
    failed = [f"{check['name']}: {check['detail']}" for check in checks if not check["passed"]]
    if failed:
        raise EvidenceError("the result is refused: " + "; ".join(failed))


def _verdict(name: str, passed: bool, detail: str) -> Check:
    return {"name": name, "passed": passed, "detail": detail}


def _compare(name: str, stored: Mapping[str, Any], again: Mapping[str, Any]) -> Check:
    wrong = [
        f"{key} is {stored.get(key)}, computed {again[key]}" for key in again if not same(stored.get(key), again[key])
    ]
    return _verdict(name, not wrong, "; ".join(wrong) or "as computed again")


def _values(result: Mapping[str, Any]) -> list[float]:
    return [float(sample[result["summary"]["metric"]]) for sample in result["samples"]]


def _summary(result: Mapping[str, Any]) -> Check:
    stored = result["summary"]
    again = summarize(_values(result), metric=stored["metric"], unit=stored["unit"])
    return _compare("summary follows from the samples", stored, again)


def _positive(result: Mapping[str, Any]) -> Check:
    wrong = [value for value in _values(result) if not (math.isfinite(value) and value > 0)]
    return _verdict("samples are finite and above 0", not wrong, f"{len(wrong)} are not")


def _saving(result: Mapping[str, Any]) -> Check:
    """Tokens found in the cache are tokens not computed: two counts that must agree to the token, in every run."""
    saved, wrong = result["saving"], []
    for index, sample in enumerate(result["samples"]):
        for off, on in zip(sample["sides"]["cache off"], sample["sides"]["cache on"], strict=True):
            found, less = sum(on["requests"]["cached_tokens"]), _computed(off) - _computed(on)
            if not found == less == saved["found_in_cache"] == saved["computed_less"]:
                wrong.append(f"sample {index + 1} found {found}, computed {less} less; {saved} is stated")
    return verdict("tokens found in the cache = tokens not computed", wrong, f"{saved['found_in_cache']} both ways")


def _computed(run: Mapping[str, Any]) -> int:
    return int(sum(run["requests"]["computed_tokens"]))


def _efficiency(result: Mapping[str, Any]) -> Check:
    again = {pair["b"]: pair["ratio"]["median"] / int(pair["b"].split()[0]) for pair in result["pairs"]}
    return _compare("efficiency = speedup / threads", result["efficiency"], again)


def _tokens(result: Mapping[str, Any]) -> Check:
    expected = result["workload"].get("tokens_per_sample")
    wrong = sum(s["tokens"] != expected for s in result["samples"]) if expected is not None else 0
    return _verdict("samples hold the workload's tokens", wrong == 0, f"{wrong} differ from {expected}")


def _limits(result: Mapping[str, Any]) -> Check:
    stored = result["limits"]
    stated = {key: stored.get(key) for key in ("capacity_metric", "cost", "does_not_bind")}
    return _compare("limits follow from the samples", stored, limits_of(result["samples"], result["summary"], stated))


def _physics(result: Mapping[str, Any]) -> Check:
    name, limits = "within the physical limit", result["limits"]
    if limits.get("best_roof") is None or limits.get("does_not_bind"):
        return _verdict(name, True, limits.get("does_not_bind") or "no limit is defined for this kind")
    median, best = result["summary"]["median"], limits["best_roof"]
    return _verdict(name, median <= best, f"median {median:.6g}, limit {best:.6g} {result['summary']['unit']}")


def _peers(result: Mapping[str, Any]) -> Check:
    summary = result["summary"]
    again = compare_engines(result["samples"], summary["metric"], summary["unit"])
    return _compare("comparison follows from the samples", result["comparison"], again)


def _asked(result: Mapping[str, Any]) -> Check:
    """Every engine, in every sample: as many tokens as were asked for, and a rate that follows from its own times."""
    asked, wrong = result["workload"]["output_tokens"], []
    for sample in result["samples"]:
        for label, one in {result["options"]["engine"]: sample, **sample["peers"]}.items():
            if one["output_tokens"] != asked:
                wrong.append(f"{label} gave {one['output_tokens']}")
            if not (one["seconds"] > 0 and same(one["tokens_per_s"], one["tokens"] / one["seconds"])):
                wrong.append(f"{label} has a rate that is not its tokens over its seconds")
    detail = "; ".join(dict.fromkeys(wrong)) or f"{asked} each"
    return _verdict("every engine gave the tokens asked for", not wrong, detail)
