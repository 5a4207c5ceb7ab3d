"""The page: one section for each result, the roofline over all of them, and nothing that is not in the file.

Files are verified before they are drawn; one that fails its checks is refused. The page needs no network, no script and
no other file. This file knows nothing of how a section looks inside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvik.bench.checks import EvidenceError, refuse_failed, run_checks
from kvik.bench.evidence import read_json, require_result
from kvik.bench.report import charts
from kvik.bench.report.parts import drawings, effects, escaped, evidence, headline, table
from kvik.bench.report.points import OURS, machine_of, points_of

STYLE = Path(__file__).with_name("style.css")
Results = dict[str, Mapping[str, Any]]


def load_results(files: Sequence[Path]) -> tuple[Results, list[Mapping[str, Any]]]:
    """(sound results by a short name, suites). Raises EvidenceError for a file that is none or fails its checks."""
    results: Results = {}
    suites: list[Mapping[str, Any]] = []
    for file in files:
        data = read_json(file)
        if isinstance(data, dict) and isinstance(data.get("parts"), dict):
            suites.append(data)
            found = {f"{file.stem}-{part}": part_data for part, part_data in data["parts"].items()}
        else:
            found = {file.stem: data}
        for name, one in found.items():
            result = require_result(one, f"{file}, {name}")
            checks = run_checks(result)
            refuse_failed(checks)
            results[_short(name, results)] = {**result, "checks": checks}
    if not results:
        raise EvidenceError("no file holds a result; expected at least one")
    return results, suites


def _short(name: str, taken: Mapping[str, Any]) -> str:
    """A name fit for an id, unlike those before it."""
    base = "r-" + (re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "result")
    return next(f"{base}{end}" for end in ["", *(f"-{n}" for n in range(2, len(taken) + 3))] if base + end not in taken)


def render(files: Sequence[Path]) -> str:
    """The whole page. Raises EvidenceError."""
    results, suites = load_results(files)
    names = list(results)
    links = "".join(f'<a href="#{name}">{escaped(_title(results[name]))}</a>' for name in names)
    dates = sorted(str(result["date"])[:10] for result in results.values())
    body = "".join(
        [
            "<h1>What was measured</h1>",
            f"<p class=soft>{len(names)} results, {escaped(dates[0])} to {escaped(dates[-1])}. Every number follows "
            "from raw samples that are in this page; all checks were run again when it was made.</p>",
            f"<nav>{links}</nav>",
            _roofline(results),
            *(_section(name, result) for name, result in results.items()),
            *(_suite(suite) for suite in suites),
        ]
    )
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>Kvik: what was measured</title><style>{style}</style></head><body>{body}</body></html>\n"
    )


def _title(result: Mapping[str, Any]) -> str:
    workload, model = result["workload"], result["model"] or {}
    what = workload.get("preset") or workload.get("case")
    parts = [result["kind"], what, model.get("name"), model.get("weights")]
    return " · ".join(str(part) for part in parts if part)


def _section(name: str, result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    figures = "".join(
        f"<figure>{svg}<figcaption>{escaped(words)}</figcaption></figure>" for svg, words in drawings(name, result)
    )
    told = [result["workload"].get("scene"), f"{machine.get('cores')} cores of {machine.get('cpu')}", result["date"]]
    quick = "<p class=fail>A quick run: it asserts identities and answers; its speeds mean little.</p>"
    return (
        f"<section id={name}><h2>{escaped(_title(result))}</h2>"
        f"<p class=soft>{escaped(' · '.join(str(each) for each in told if each))}</p>"
        f"{quick if result.get('quick') else ''}{headline(result)}{figures}{effects(result)}{evidence(name, result)}"
        "</section>"
    )


def _roofline(results: Results) -> str:
    found = machine_of(results)
    if found is None:
        return ""
    bandwidth, peaks, cpu = found
    points = [
        point
        for name, one in results.items()
        if one["machine"].get("cpu") == cpu and not one.get("quick")
        for point in points_of(name, one)
    ]
    if not points:
        return ""
    svg = charts.roofline("roof", bandwidth, peaks, points)
    rows = [
        (
            number,
            point.label.removeprefix("r-"),
            point.intensity,
            point.rate / 1e9,
            "Kvik" if point.series == OURS else "peer",
        )
        for number, point in enumerate(points, 1)
    ]
    head = ("", "result", "operations per byte", "Gop/s", "")
    return (
        f"<section id=roofline><h2>Under the roof of {escaped(cpu)}</h2><p class=soft>{bandwidth / 1e9:.1f} GB/s read, "
        "the best measured beside these results. A run whose weights stay in the processor's cache can lie above the "
        f"slope.</p><figure>{svg}<figcaption>Each number is a row of the table; the first colour is Kvik, "
        "the second are others.</figcaption></figure>"
        f"<details><summary>The points</summary>{table(head, rows, (1, 4))}</details></section>"
    )


def _suite(suite: Mapping[str, Any]) -> str:
    skipped = "".join(f"<p>{escaped(part)}: {escaped(why)}</p>" for part, why in suite["not_applicable"].items())
    code = suite.get("code")
    rows = [(name, value) for name, value in code.items() if name != "how_obtained"] if code else []
    counted = (
        f"<h3>The code</h3>{table(('', ''), rows)}<p class=soft>{escaped(code['how_obtained'])}</p>" if code else ""
    )
    does_not = f"<h3>Does not apply here</h3>{skipped}" if skipped else ""
    return f"<section><h2>Suite of {escaped(suite['date'])}</h2>{does_not}{counted}</section>"
