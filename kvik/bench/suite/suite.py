"""The suite: every part of the plan in turn, one file of results, and what does not apply on this machine said so.

Parts are results like any other and are checked like any other; the suite only puts them side by side. This file knows
nothing of command lines.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvik import __version__
from kvik.bench.checks import refuse_failed, run_checks
from kvik.bench.commit import find_commit
from kvik.bench.decode import DecodeWorkload, measure_decode
from kvik.bench.evidence import Result, write_json
from kvik.bench.ladder.rounds import hold, quick_roofline
from kvik.bench.machine import describe, roofline
from kvik.bench.measure import Progress, Repeat
from kvik.bench.prefill import PrefillWorkload, measure_prefill
from kvik.bench.suite.code import code_statistics
from kvik.bench.suite.contests import CONTESTS, Plan
from kvik.bench.suite.scenes import Lengths
from kvik.bench.throughput import measure_throughput
from kvik.bench.workload import draw_requests
from kvik.config import EngineConfig
from kvik.engine.build import open_model
from kvik.errors import ConfigError
from kvik.runners.choose import create_runner

SIMPLE = ("prefill", "decode", "throughput")
PARTS = (*SIMPLE, *CONTESTS, "code")
GRAPHS_SINGLE = "captured graphs spare the launches of CUDA kernels; this runner computes on the CPU and has none"
ONE_THREAD = "there is one thread to use, so nothing to compare it with"


def run_suite(
    parts: Sequence[str], plan: Plan, repeat: Repeat, progress: Progress, *, quick: bool = False
) -> dict[str, Any]:
    """Every part asked for. Raises ConfigError for an unknown one, EvidenceError if a check fails."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ConfigError(f"part is {unknown[0]!r}; expected one of {', '.join(PARTS)}")
    refused = not_applicable(plan)
    results = {}
    for part in parts:
        if part not in refused and part != "code":
            progress(f"suite: {part}")
            results[part] = {**run_part(part, plan, repeat, progress, quick), "quick": quick}
    return {
        "kind": "suite",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "kvik_version": __version__,
        "commit": find_commit(),
        "machine": describe(),
        "quick": quick,
        "parts": results,
        "not_applicable": {part: why for part, why in refused.items() if part in parts},
        "code": code_statistics() if "code" in parts else None,
    }


def run_part(part: str, plan: Plan, repeat: Repeat, progress: Progress, quick: bool) -> Result:
    """One part's result."""
    if part in SIMPLE:
        return _simple(part, plan, repeat, progress)
    contest, room = CONTESTS[part](plan)
    result = hold(contest, room, repeat, progress, quick_roofline if quick else roofline)
    if part == "prefix-cache":
        result["saving"] = saving(result)
    if part.endswith("scaling"):
        result["efficiency"] = efficiency(result)
    result["checks"] = run_checks(result)
    refuse_failed(result["checks"])
    return result


def not_applicable(plan: Plan) -> dict[str, str]:
    """Parts that say nothing on this machine, with the reason."""
    runner = create_runner(EngineConfig.from_options(**plan.engine))
    try:
        name = runner.name
    finally:
        runner.close()
    found = {} if name == "cuda" else {"graphs": GRAPHS_SINGLE}
    if plan.threads == 1:
        found |= dict.fromkeys(("strong-scaling", "weak-scaling"), ONE_THREAD)
    return found


def _simple(part: str, plan: Plan, repeat: Repeat, progress: Progress) -> Result:
    lengths = plan.lengths
    config = EngineConfig.from_options(**plan.engine)
    if part == "prefill":
        return measure_prefill(config, PrefillWorkload(1, lengths.input_len), repeat, progress)
    if part == "decode":
        workload = DecodeWorkload(lengths.requests, lengths.input_len, min(32, lengths.output_len))
        return measure_decode(config, workload, repeat, progress)
    sizes = (lengths.input_len,) * 2, (lengths.output_len,) * 2
    requests = draw_requests(lengths.requests, *sizes, lengths.seed, lengths.top_token)
    return measure_throughput(config, requests, 0.0, repeat, progress, show_bar=False)


def saving(result: Mapping[str, Any]) -> dict[str, int]:
    """Prompt tokens saved by the cache, two ways: found in it, and computed less with it than without."""
    off, on = (result["samples"][0]["sides"][side][0]["requests"] for side in ("cache off", "cache on"))
    return {
        "prompt_tokens": sum(on["prompt_tokens"]),
        "found_in_cache": sum(on["cached_tokens"]),
        "computed_less": sum(off["computed_tokens"]) - sum(on["computed_tokens"]),
    }


def efficiency(result: Mapping[str, Any]) -> dict[str, float]:
    """Tokens/s of every number of threads over that many times one thread's."""
    return {pair["b"]: pair["ratio"]["median"] / int(pair["b"].split()[0]) for pair in result["pairs"]}


def fitted(lengths: Lengths, engine: Mapping[str, Any]) -> Lengths:
    """The same lengths with token ids that the model has."""
    config = EngineConfig.from_options(model=engine.get("model"), seed=engine.get("seed", 0))
    top = open_model(config).spec.vocab_size - 1
    return Lengths(**{**vars(lengths), "top_token": top, "seed": config.runner.seed})


def write_suite(suite: Mapping[str, Any], path: Path) -> None:
    """Write a suite whose parts pass their checks. Raises EvidenceError if one fails or the file cannot be written."""
    for part in suite["parts"].values():
        refuse_failed(run_checks(part))
    write_json(dict(suite), path)
