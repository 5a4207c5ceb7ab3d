"""Evidence: a result file that says how it was obtained, and that is refused when it contradicts itself.

A result is one JSON object with the fields of REQUIRED; a figure that fails a check is never written. This file
knows nothing of what is measured: each kind of result brings its samples, its limit and its method in words.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvik import __version__
from kvik.bench.checks import Check, EvidenceError, Sample, limits_of, refuse_failed, run_checks, summarize
from kvik.bench.commit import find_commit
from kvik.bench.foreign import check_foreign, is_foreign

Result = dict[str, Any]
_NUMBERS = re.compile(r"\[\n\s+((?:-?[\d.eE+-]+|null)(?:,\n\s+(?:-?[\d.eE+-]+|null))*)\n\s+\]")
"""A list of nothing but numbers, as json.dumps indents it."""
_REMARK = re.compile(r"(?<=[\d\s,])//[^\"\n]*$", re.M)

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
    write_json(result, path)


def write_json(result: Mapping[str, Any], path: Path) -> None:
    """Write data as JSON that people can read. Raises EvidenceError if the file cannot be written."""
    text = _flat_lists(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EvidenceError(f"{path} cannot be written: {error.strerror}") from error


def _flat_lists(text: str) -> str:
    """Indented JSON with lists of numbers on one line each; no text in a result has a line break inside brackets."""
    return _NUMBERS.sub(lambda found: "[" + ", ".join(found[1].split()).replace(",,", ",") + "]", text)


def read(path: Path) -> Result:
    """A result file as it lies on disk. Raises EvidenceError naming what is missing."""
    return require_result(read_json(path), str(path))


def read_json(path: Path) -> Any:
    """What a file of JSON holds, remarks after // at the end of its lines left out. Raises EvidenceError if it cannot
    be read or is none.
    """
    try:
        return json.loads(_REMARK.sub("", path.read_text(encoding="utf-8")))
    except OSError as error:
        raise EvidenceError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"{path} is not JSON: {error}") from error


def require_result(data: Any, where: str) -> Result:
    """The same data if it has the fields of a result. Raises EvidenceError naming what is missing."""
    missing = [name for name in REQUIRED if not isinstance(data, dict) or name not in data]
    if missing:
        raise EvidenceError(f"{where} is not a result: it lacks {', '.join(missing)}")
    return dict(data)


def verify(path: Path) -> list[Check]:
    """The checks of a file, computed again: a result, a suite of results, or a claim from elsewhere.

    Raises EvidenceError if it is none of these.
    """
    data = read_json(path)
    if is_foreign(data):
        try:
            return check_foreign(data)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise EvidenceError(f"{path} is a malformed claim: {type(error).__name__}: {error}") from error
    if isinstance(data, dict) and isinstance(data.get("parts"), dict):
        return [
            {**check, "name": f"{name}: {check['name']}"}
            for name, part in data["parts"].items()
            for check in run_checks(require_result(part, f"{path}, {name}"))
        ]
    return run_checks(require_result(data, str(path)))
