"""What must hold in the result of a load, whoever measured it: computed again from the records.

The identities tie together what was measured apart: the tokens that the server counted, the moments at which the client
saw them, and the figures made of both. This file knows nothing of servers or clocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from kvik.bench.identities import TOLERANCE, Check, same, verdict
from kvik.bench.serve.figures import Slo, run_figures

MICROSECOND = 1.0


def serve_checks(result: Mapping[str, Any]) -> list[Check]:
    """The identities of every sample. Raises KeyError and the like for a result that is malformed."""
    workload = result["workload"]
    slo = Slo(**workload["slo"])
    samples = result["samples"]
    good = [r for sample in samples for r in sample["records"] if "error" not in r]
    return [
        _verdict("every request has one record", _counts(samples, workload["requests"])),
        _verdict("figures follow from the records", _figures(samples, slo)),
        _verdict("TTFT + TPOT x (tokens - 1) = E2E", [_times(record) for record in good]),
        _verdict("moments are in order", [_order(record) for record in good]),
        _verdict("tokens = sum of usages", _tokens(samples)),
        _verdict("no answer is longer than asked", [_length(record) for record in good]),
        _verdict("no more in flight than clients", _clients(samples, workload.get("concurrency"))),
        _verdict("the server counts the same tokens", [_server(sample) for sample in samples]),
    ]


def _verdict(name: str, faults: Sequence[str | None]) -> Check:
    return verdict(name, [fault for fault in faults if fault], f"{len(faults)} looked at")


def _counts(samples: Sequence[Mapping[str, Any]], asked: int) -> list[str | None]:
    expected = list(range(asked))
    return [
        None if [r["id"] for r in sample["records"]] == expected else f"{len(sample['records'])} records of {asked}"
        for sample in samples
    ]


def _figures(samples: Sequence[Mapping[str, Any]], slo: Slo) -> list[str | None]:
    faults: list[str | None] = []
    for sample in samples:
        again = run_figures(sample["records"], sample["seconds"], slo)
        wrong = [name for name, value in again.items() if not same(sample.get(name), value)]
        faults.append(f"{', '.join(wrong)} computed again differ" if wrong else None)
    return faults


def _times(record: Mapping[str, Any]) -> str | None:
    if record["tpot_us"] is None:
        return None
    again = record["ttft_us"] + record["tpot_us"] * (record["output_tokens"] - 1)
    wrong = abs(again - record["e2e_us"]) > MICROSECOND
    return f"request {record['id']}: {again:.0f} us, E2E is {record['e2e_us']} us" if wrong else None


def _order(record: Mapping[str, Any]) -> str | None:
    events, ttft, e2e = record["events_us"], record["ttft_us"], record["e2e_us"]
    moments = [*events, e2e]
    ordered = all(earlier <= later for earlier, later in itertools.pairwise(moments))
    begins = not events or events[0] == ttft
    return None if ordered and begins and ttft > 0 else f"request {record['id']}: {moments[:3]} .. {e2e}, TTFT {ttft}"


def _tokens(samples: Sequence[Mapping[str, Any]]) -> list[str | None]:
    faults: list[str | None] = []
    for sample in samples:
        total = sum(record["output_tokens"] for record in sample["records"] if "error" not in record)
        faults.append(None if total == sample["tokens"] else f"{total} in the records, {sample['tokens']} stated")
    return faults


def _length(record: Mapping[str, Any]) -> str | None:
    given, asked = record["output_tokens"], record["asked"]
    return None if 0 <= given <= asked else f"request {record['id']}: {given} tokens, {asked} were asked for"


def _clients(samples: Sequence[Mapping[str, Any]], concurrency: int | None) -> list[str | None]:
    """Little's law: the time of all requests together, over the time of the run, is how many there were at once."""
    if concurrency is None:
        return []
    found = [sample["mean_in_flight"] for sample in samples]
    return [None if many <= concurrency * (1 + TOLERANCE) else f"{many:.2f} of {concurrency}" for many in found]


def _server(sample: Mapping[str, Any]) -> str | None:
    """Kvik says how many tokens it made; only a load that had the server to itself, without errors, can be compared."""
    server = sample.get("server")
    if not server or not server["alone"] or sample["errors"] or sample["without_usage"]:
        return None
    made, got = server["did"]["generated_tokens"], sample["tokens"]
    return None if made == got else f"the server made {made}, clients got {got}"
