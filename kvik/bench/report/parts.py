"""The pieces of a result's section: headline, charts, tables, and the evidence folded away under them.

Each is a string of HTML; everything that comes from a file is escaped. This file knows the fields of results and
nothing of pages.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvik.bench.report import charts
from kvik.bench.report.charts import Bar, drawn
from kvik.bench.sides import values_of

Result = Mapping[str, Any]
Drawing = tuple[str, str]
"""An SVG, and what it shows in words."""


LONG_WORDS = 60
"""Characters from which a cell gets a width of its own."""


def escaped(value: Any) -> str:
    """Text that is safe inside HTML."""
    return html.escape(str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], text: Sequence[int] = (0,)) -> str:
    """A table; the columns in `text` hold words, the others numbers."""

    def cell(tag: str, index: int, value: Any) -> str:
        shape = "text why" if len(str(value)) > LONG_WORDS else "text"
        return f"<{tag} class='{shape if index in text else 'number'}'>{escaped(drawn(value))}</{tag}>"

    lines = ["".join(cell("th", index, title) for index, title in enumerate(head))]
    lines += ["".join(cell("td", index, value) for index, value in enumerate(row)) for row in rows]
    return f"<div class=scroll><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def headline(result: Result) -> str:
    """The summary in one line, and what it is of the machine's limit."""
    summary, limits = result["summary"], result["limits"]
    known = summary["median_spread_percent"]
    told = [
        f"median of {summary['repetitions']}",
        f"{drawn(summary['min'])} to {drawn(summary['max'])}",
        "too few for an interval" if known is None else f"known to {known:.1f} %",
    ]
    if limits.get("fraction") is not None and not limits.get("does_not_bind"):
        told.append(f"{100 * limits['fraction']:.0f} % of what the machine allows")
    return (
        f"<p class=headline>{escaped(drawn(summary['median']))} <small>{escaped(summary['unit'])} &middot; "
        f"{escaped(' · '.join(told))}</small></p>"
    )


def drawings(name: str, result: Result) -> list[Drawing]:
    """The charts of a result."""
    if "sides" in result:
        return _side_drawings(name, result)
    if "comparison" in result:
        return [_engines(name, result)]
    if "stages" in result:
        return [_stages(name, result)]
    values = tuple(float(sample[result["summary"]["metric"]]) for sample in result["samples"])
    bar = Bar(result["kind"], values, result["summary"]["median"])
    return [
        (charts.bars(f"{name}-speed", [bar], result["summary"]["unit"]), "Every sample a dot, the bar their median.")
    ]


def _side_drawings(name: str, result: Result) -> list[Drawing]:
    sides, samples = result["sides"], result["samples"]

    def rows(metric: str, scale: float = 1.0) -> list[Bar]:
        return [
            Bar(
                _titled(side, one),
                tuple(scale * value for value in values_of(samples, side, metric)),
                scale * one["metrics"][metric]["median"],
            )
            for side, one in sides.items()
        ]

    gaps = {
        side: [[1e3 * gap, count] for sample in samples for run in sample["sides"][side] for gap, count in run["itl_s"]]
        for side in sides
    }
    memory = {
        side: {
            part: samples[0]["sides"][side][0]["memory_bytes"][part] / 1e6 for part in ("weights", "kv", "activations")
        }
        for side in sides
    }
    return [
        (charts.bars(f"{name}-speed", rows("tokens_per_s"), "tokens/s"), "Output tokens a second; every run a dot."),
        (charts.bars(f"{name}-ttft", rows("ttft_s", 1e3), "ms"), "Time to the first token, median over requests."),
        (charts.distributions(f"{name}-gaps", _spoken(gaps), "gap between two tokens"), "All gaps of all runs."),
        (charts.bars(f"{name}-kv", rows("kv_utilisation", 100), "%"), "Token slots held that hold a token."),
        (charts.stacks(f"{name}-memory", memory, "MB"), "Memory by component, as the runner holds it."),
    ]


def _spoken(gaps: Mapping[str, list[list[float]]]) -> dict[str, list[list[float]]]:
    """Only sides that have gaps: an answer of one token has none."""
    return {side: pairs for side, pairs in gaps.items() if pairs}


def _titled(side: str, one: Mapping[str, Any]) -> str:
    from kvik.bench.ladder.rungs import RUNGS

    titles = {rung.name: rung.title for rung in RUNGS}
    return f"{side}  {titles[side]}" if side in titles else side


def _engines(name: str, result: Result) -> Drawing:
    summary, metric = result["summary"], result["summary"]["metric"]
    own = tuple(float(sample[metric]) for sample in result["samples"])
    rows = [Bar(result["options"]["engine"], own, summary["median"])]
    for label, peer in result["comparison"].items():
        values = tuple(float(sample["peers"][label][metric]) for sample in result["samples"])
        rows.append(Bar(label, values, peer["speed"]["median"], f"   we are {peer['ratio']['median']:.2f}x"))
    return charts.bars(f"{name}-engines", rows, summary["unit"]), "Engines in turn, round after round."


def _stages(name: str, result: Result) -> Drawing:
    rows = []
    for stage, one in result["stages"].items():
        values = tuple(float(sample["stages"][stage]["tokens_per_s"]) for sample in result["samples"])
        share = f"   {100 * one['share']['median']:.0f} % of the bare step"
        rows.append(Bar(stage, values, one["speed"]["median"], share))
    return charts.bars(f"{name}-stages", rows, "tokens/s"), "One layer more in every row; every round a dot."


def effects(result: Result) -> str:
    """Effects with their controls, claims with our figures, quality: what a contest says in words."""
    if "pairs" not in result:
        return ""
    pairs = [
        (
            f"{pair['a']} to {pair['b']}",
            pair["metric"],
            f"{pair['ratio']['median']:.3f}x",
            f"{pair['control']['min']:.3f} .. {pair['control']['max']:.3f}",
            "yes" if pair["beyond_control"] else "no",
        )
        for pair in result["pairs"]
        if not pair["ratio"]["min"] == pair["ratio"]["max"] == 1
    ]
    listed = table(("", "of", "ratio", "same side again", "shown"), pairs, (0, 1))
    told = f"<details><summary>{len(pairs)} effects, each beside its control</summary>{listed}</details>"
    parts = [told] if pairs else []
    if result.get("claims"):
        rows = [
            (
                claim["rung"],
                claim["says"],
                drawn(claim["ours"]),
                "holds" if claim["holds"] else "differs" if claim["shown"] else "not shown",
                "" if claim["holds"] else claim["reason"],
            )
            for claim in result["claims"]
        ]
        parts += [
            "<h3>What is said, and what we found</h3>",
            table(("", "claim", "ours", "", "why"), rows, (0, 1, 3, 4)),
        ]
    return "".join([*parts, _quality(result)])


def _quality(result: Result) -> str:
    if "quality" not in result:
        return ""
    rows = []
    for name, side in result["quality"]["sides"].items():
        tasks = side["tasks"]
        right = f"{tasks['right']} of {tasks['count']}" if tasks else "-"
        rows.append((name, f"{side['perplexity']:.3f} ± {side['perplexity_error']:.3f}", right))
    return "<h3>Quality</h3>" + table(("", "perplexity", "questions right"), rows)


def evidence(name: str, result: Result) -> str:
    """Checks, method, machine, load, and the whole file, folded away."""
    checks = "".join(
        f"<tr><td class={'pass' if check['passed'] else 'fail'}>{'pass' if check['passed'] else 'FAIL'}</td>"
        f"<td class=text>{escaped(check['name'])}</td><td class=text>{escaped(check['detail'])}</td></tr>"
        for check in result["checks"]
    )
    passed = sum(check["passed"] for check in result["checks"])
    raw = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    return (
        f"<details id={name}-evidence><summary>The evidence: {passed} of {len(result['checks'])} checks pass</summary>"
        f"<p class=soft>{escaped(result['how_obtained'])}</p>"
        f"<div class=scroll><table>{checks}</table></div>"
        f"<p class=soft>{escaped(_load(result))}</p>"
        f"{_folded('machine', result['machine'])}{_folded('options', result['options'])}"
        f"{_folded('workload', result['workload'])}"
        f"<details><summary>the whole result, every raw sample</summary><pre>{escaped(raw)}</pre></details></details>"
    )


def _load(result: Result) -> str:
    others = [
        s["load"]["other_cores"] for s in result["samples"] if (s.get("load") or {}).get("other_cores") is not None
    ]
    if not others:
        return "What else the machine did was not recorded."
    return f"Other programs took {min(others):.2f} to {max(others):.2f} cores during the samples."


def _folded(title: str, data: Any) -> str:
    text = json.dumps(data, indent=1, ensure_ascii=False)
    return f"<details><summary>{escaped(title)}</summary><pre>{escaped(text)}</pre></details>"
