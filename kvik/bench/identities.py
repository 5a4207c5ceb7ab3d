"""The identities of a run: what must hold between its tokens, its times, its memory and its steps.

A run is any object inside a sample that has the fields in question, however deep it lies, so that a result cannot keep
one out of sight. The columns of `requests` are lists with one entry per request, in the order they were given. This
file knows nothing of summaries, files or models; checks.py puts its verdicts beside the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Run = Mapping[str, Any]
Found = list[tuple[str, Run]]
Check = dict[str, Any]

TOLERANCE = 1e-6
"""Relative difference allowed between a stored figure and the same figure computed again."""
CLOCK = 1e-6
"""Seconds by which sums of times may differ: they were taken by one clock, but rounded when written."""
TICKS = 1.25
"""Processor time is counted in ticks; a short sample may seem to use this much more than there is."""


def verdict(name: str, wrong: Sequence[str], sound: str) -> Check:
    """A check that passes when nothing is wrong; its detail names the first few things that are."""
    told = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    return {"name": name, "passed": not wrong, "detail": told or sound}


def same(stored: Any, again: Any) -> bool:
    """Equal, numbers up to TOLERANCE; objects and lists entry by entry."""
    if isinstance(stored, Mapping) and isinstance(again, Mapping):
        return stored.keys() == again.keys() and all(same(stored[key], again[key]) for key in again)
    if isinstance(stored, (list, tuple)) and isinstance(again, (list, tuple)):
        return len(stored) == len(again) and all(map(same, stored, again))
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (stored, again))
    return math.isclose(stored, again, rel_tol=TOLERANCE) if numbers else bool(stored == again)


def objects_in(value: Any, path: str) -> Iterator[tuple[str, Run]]:
    """Every object inside `value`, itself included, with the way to it."""
    if isinstance(value, Mapping):
        yield path, value
        for key, part in value.items():
            yield from objects_in(part, f"{path}.{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            if isinstance(part, (Mapping, list)):
                yield from objects_in(part, f"{path}[{index}]")


def identity_checks(samples: Sequence[Run], cores: int | None) -> list[Check]:
    """Every identity that applies to something in the samples; one that nothing in them has the fields for is left
    out.
    """
    found = [one for index, sample in enumerate(samples) for one in objects_in(sample, f"sample {index + 1}")]
    checks = []
    for name, needed, wrong_in in _IDENTITIES:
        having = [(path, run) for path, run in found if needed <= run.keys()]
        if having:
            wrong = [f"{path}: {why}" for path, run in having for why in wrong_in(run)]
            checks.append(verdict(name, wrong, f"in all {len(having)}"))
    if any("load" in sample for sample in samples):
        checks.append(_load(samples, cores))
    return checks


def _rate(run: Run) -> Iterator[str]:
    if not (run["seconds"] > 0 and same(run["tokens_per_s"], run["tokens"] / run["seconds"])):
        yield f"{run['tokens']} tokens in {run['seconds']} s are not {run['tokens_per_s']} a second"


def _answers(run: Run) -> Iterator[str]:
    total = sum(run["requests"]["output_tokens"])
    if total != run["tokens"]:
        yield f"the answers have {total} tokens, the run {run['tokens']}"


def _asked(run: Run) -> Iterator[str]:
    columns = run["requests"]
    pairs = zip(columns.get("asked_tokens", columns["output_tokens"]), columns["output_tokens"], strict=True)
    for index, (asked, given) in enumerate(pairs):
        if asked != given:
            yield f"request {index + 1} has {given} tokens of {asked}"


def _prompts(run: Run) -> Iterator[str]:
    columns = run["requests"]
    rows = zip(columns["prompt_tokens"], columns["cached_tokens"], columns["computed_tokens"], strict=True)
    for index, (prompt, cached, computed) in enumerate(rows):
        if cached + computed != prompt or min(cached, computed) < 0:
            yield f"request {index + 1} has {cached} cached + {computed} computed of {prompt} prompt tokens"
    total = sum(columns["prompt_tokens"])
    if run.get("input_tokens", total) != total:
        yield f"the prompts have {total} tokens, the run {run['input_tokens']}"


def _latencies(run: Run) -> Iterator[str]:
    columns = run["requests"]
    rows = zip(columns["ttft_s"], columns["tpot_s"], columns["e2e_s"], columns["output_tokens"], strict=True)
    for index, (ttft, tpot, e2e, count) in enumerate(rows):
        rest = tpot * (count - 1) if count > 1 else 0.0
        if not abs(ttft + rest - e2e) <= max(CLOCK, TOLERANCE * abs(e2e)):
            yield f"request {index + 1}: {ttft:.6g} + {rest:.6g} s is not {e2e:.6g} s"


def _inside(run: Run) -> Iterator[str]:
    columns = run["requests"]
    for index, (ttft, e2e) in enumerate(zip(columns["ttft_s"], columns["e2e_s"], strict=True)):
        if not 0 < ttft <= e2e + CLOCK:
            yield f"request {index + 1} has its first token after {ttft:.6g} s and its end after {e2e:.6g} s"
        elif e2e > run["seconds"] + CLOCK:
            yield f"request {index + 1} takes {e2e:.6g} s in a run of {run['seconds']:.6g} s"


def _gaps(run: Run) -> Iterator[str]:
    columns = run["requests"]
    after_first = sum(count - 1 for count in columns["output_tokens"])
    counted = sum(count for _, count in run["itl_s"])
    if counted != after_first:
        yield f"{counted} gaps between {after_first} tokens after a first one"
    waited = math.fsum(seconds * count for seconds, count in run["itl_s"])
    decoding = math.fsum(columns["e2e_s"]) - math.fsum(columns["ttft_s"])
    if not abs(waited - decoding) <= CLOCK * max(1, counted):
        yield f"gaps of {waited:.6g} s in all, but {decoding:.6g} s from first to last tokens"


def _memory(run: Run) -> Iterator[str]:
    parts = {name: size for name, size in run["memory_bytes"].items() if name != "total"}
    total = run["memory_bytes"].get("total")
    if total != sum(parts.values()):
        yield f"{' + '.join(f'{name} {size}' for name, size in parts.items())} bytes are not {total}"


def _kv(run: Run) -> Iterator[str]:
    kv = run["kv_cache"]
    if not 0 <= kv["tokens_held"] <= kv["slots_held"]:
        yield f"{kv['tokens_held']} tokens in {kv['slots_held']} slots"
    elif not same(kv["utilisation"], kv["tokens_held"] / kv["slots_held"] if kv["slots_held"] else 1.0):
        yield f"{kv['tokens_held']} of {kv['slots_held']} slots is not a share of {kv['utilisation']}"
    if kv["peak_slots"] > kv["total_slots"]:
        yield f"{kv['peak_slots']} slots were held at once where there are {kv['total_slots']}"


def _steps(run: Run) -> Iterator[str]:
    longest = max(run["requests"]["output_tokens"])
    if run["steps"] < longest:
        yield f"{run['steps']} steps cannot give an answer of {longest} tokens, one after another"


def _needs(run: Run) -> Iterator[str]:
    needs = run["needs"]
    for amount, capacity, what in (("bytes", "bytes_per_s", "read"), ("operations", "operations_per_s", "compute")):
        if needs.get(capacity) is None:
            continue
        least = needs[amount] / needs[capacity]
        if run["seconds"] < least:
            yield (
                f"{run['seconds']:.6g} s, where the {needs[amount]:.4g} {amount} it must {what} take {least:.6g} s "
                f"at {needs[capacity]:.4g} a second"
            )


def _load(samples: Sequence[Run], cores: int | None) -> Check:
    wrong = [f"sample {index + 1} has none" for index, sample in enumerate(samples) if not sample.get("load")]
    for index, sample in enumerate(samples):
        own = (sample.get("load") or {}).get("own_cores")
        if cores is not None and own is not None and not 0 <= own <= TICKS * cores:
            wrong.append(f"sample {index + 1} used {own:.2f} cores of {cores}")
    others = [sample["load"]["other_cores"] for sample in samples if sample.get("load")]
    known = [value for value in others if value is not None]
    told = f"others took {max(known):.2f} cores at most" if known else "this machine does not say"
    return verdict("other load on the machine is recorded", wrong, told)


_IDENTITIES: tuple[tuple[str, set[str], Callable[[Run], Iterator[str]]], ...] = (
    ("tokens_per_s = tokens / seconds", {"tokens", "seconds", "tokens_per_s"}, _rate),
    ("answers add up to the tokens", {"requests", "tokens"}, _answers),
    ("every answer is as long as asked", {"requests"}, _asked),
    ("cached + computed = prompt tokens", {"requests", "seconds"}, _prompts),
    ("TTFT + TPOT x (n - 1) = E2E", {"requests", "seconds"}, _latencies),
    ("no request outlasts its run", {"requests", "seconds"}, _inside),
    ("gaps between tokens add up", {"requests", "itl_s"}, _gaps),
    ("memory parts sum to the whole", {"memory_bytes"}, _memory),
    ("KV tokens fit their slots", {"kv_cache"}, _kv),
    ("a step gives a request one token at most", {"requests", "steps"}, _steps),
    ("within what the machine can read and compute", {"needs", "seconds"}, _needs),
)
