"""Evidence: a result file that says how it was obtained, and that is refused when it contradicts itself.

A result is one JSON object with the fields of REQUIRED; a figure that fails a check is never written. This file
knows nothing of what is measured: each kind of result brings its samples, its limit and its method in words.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvik import __version__
from kvik.bench.checks import Check, EvidenceError, Sample, limits_of, refuse_failed, run_checks, summarize
from kvik.bench.commit import find_commit

Result = dict[str, Any]

REQUIRED = (
    "kind",
    "date",
    "kvik_version",
    "commit",
    "machine",
    "model",
    "options",
    "workload",
    "seed",
    "warmups",
    "samples",
    "summary",
    "limits",
    "how_obtained",
    "checks",
)


def compose(
    *,
    kind: str,
    metric: str,
    unit: str,
    machine: Mapping[str, Any],
    samples: Sequence[Sample],
    limits: Mapping[str, Any],
    how_obtained: str,
    warmups: int = 0,
    model: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    workload: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Result:
    """A complete result with its checks; `limits` is what `checks.limits_of` calls `stated`.

    Raises EvidenceError if a check fails.
    """
    summary = summarize([float(sample[metric]) for sample in samples], metric=metric, unit=unit)
    result: Result = {
        "kind": kind,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "kvik_version": __version__,
        "commit": find_commit(),
        "machine": dict(machine),
        "model": dict(model) if model else None,
        "options": dict(options or {}),
        "workload": dict(workload or {}),
        "seed": seed,
        "warmups": warmups,
        "samples": [dict(sample) for sample in samples],
        "summary": summary,
        "limits": limits_of(samples, summary, limits),
        "how_obtained": how_obtained,
    }
    result["checks"] = run_checks(result)
    refuse_failed(result["checks"])
    return result


def write(result: Result, path: Path) -> None:
    """Write a result whose checks pass. Raises EvidenceError if one fails or the file cannot be written."""
    refuse_failed(run_checks(result))
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EvidenceError(f"{path} cannot be written: {error.strerror}") from error


def read(path: Path) -> Result:
    """A result file as it lies on disk. Raises EvidenceError naming what is missing."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvidenceError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EvidenceError(f"{path} is not JSON: {error}") from error
    missing = [name for name in REQUIRED if not isinstance(result, dict) or name not in result]
    if missing:
        raise EvidenceError(f"{path} is not a result: it lacks {', '.join(missing)}")
    return dict(result)


def verify(path: Path) -> list[Check]:
    """The checks of a result file, computed again. Raises EvidenceError if it is not a result."""
    return run_checks(read(path))
