"""Put what was measured into the pages of docs/ladder. `--check` only says whether they are up to date.

    python tools/make_ladder_pages.py [--check]

A page has places for figures, between `<!-- measured PRESET RUNG -->` and `<!-- end -->`. What stands there comes from
the newest result of that preset under docs/results (a file of `kvik bench ladder` that is not a quick one and passes
its checks), never from a keyboard; where there is none it says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from kvik.bench.checks import run_checks
from kvik.bench.ladder.rungs import NAMES
from kvik.cli.terminal import human_bytes

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "ladder"
RESULTS = ROOT / "docs" / "results"
PLACE = re.compile(r"(<!-- measured ([\w-]+) (M\d) -->\n).*?(<!-- end -->)", re.S)
NOT_YET = "*Not measured yet.* `kvik bench ladder --preset {preset} -o FILE` measures it.\n"
HEAD = (
    "| | tokens/s | first token | per token | worst wait | KV used | requests that fit | weights |\n"
    "|---|---|---|---|---|---|---|---|\n"
)

Result = dict[str, Any]


def newest(results: Path) -> dict[str, tuple[Path, Result]]:
    """The latest sound full result of every preset, with its file."""
    found: dict[str, tuple[Path, Result]] = {}
    for path in sorted(results.rglob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("kind") != "ladder" or data.get("quick"):
            continue
        if not all(check["passed"] for check in run_checks(data)):
            raise SystemExit(f"{path} does not pass its checks")
        preset = data["workload"]["preset"]
        if preset not in found or data["date"] > found[preset][1]["date"]:
            found[preset] = path, data
    return found


def sides_of(result: Result, rung: str) -> list[str]:
    """The sides that a page about this rung shows: its own and those it is held against."""
    below = NAMES[max(0, NAMES.index(rung) - 1)]
    return [name for name in result["sides"] if name.split()[0] in (below, rung)]


def row(name: str, metrics: dict[str, Any]) -> str:
    """One side as a line of the table; medians."""
    value = {metric: summary["median"] for metric, summary in metrics.items()}
    return (
        f"| {name} | {value['tokens_per_s']:.1f} | {1e3 * value['ttft_s']:.0f} ms | {1e3 * value['tpot_s']:.1f} ms | "
        f"{1e3 * value['itl_max_s']:.0f} ms | {100 * value['kv_utilisation']:.1f} % | {value['largest_batch']:.0f} | "
        f"{human_bytes(value['weights_bytes'])} |\n"
    )


def claim_line(claim: dict[str, Any]) -> str:
    """A claim with our figure, and the reason where they differ."""
    ours = f"{claim['ours']:.2f}" + (" times" if claim["a"] else "")
    if claim["holds"]:
        return f'- "{claim["says"]}": **holds**, {ours} here.\n'
    word = "**differs**" if claim["shown"] else "**not shown**, the effect is within the control"
    return f'- "{claim["says"]}": {word}, {ours} here. {claim["reason"]}\n'


def measured(found: dict[str, tuple[Path, Result]], preset: str, rung: str) -> str:
    """What belongs into one place."""
    if preset not in found:
        return NOT_YET.format(preset=preset)
    path, result = found[preset]
    workload, machine = result["workload"], result["machine"]
    rounds = result["summary"]["repetitions"]
    link = Path("..") / path.relative_to(RESULTS.parent)
    claims = [claim_line(claim) for claim in result["claims"] if claim["rung"] == rung]
    said = "".join(["What is said of it, and what we found:\n\n", *claims, "\n"]) if claims else ""
    return (
        f"{result['model']['name']}, {workload['requests']} requests, {workload['input_tokens']} tokens in and "
        f"{workload['output_tokens']} out: {workload['scene']}. Medians of {2 * rounds} runs on {machine['cores']} "
        f"cores of {machine['cpu']}, {result['date'][:10]} ([{path.name}]({link.as_posix()})).\n\n"
        + HEAD
        + "".join(row(name, result["sides"][name]["metrics"]) for name in sides_of(result, rung))
        + "\n"
        + (quality(result) if rung == "M7" else "")
        + said
    )


def quality(result: Result) -> str:
    """Perplexity and right answers of both forms."""
    lines = []
    for name, side in result["quality"]["sides"].items():
        tasks = side["tasks"]
        right = f", {tasks['right']} of {tasks['count']} held-out questions right" if tasks else ""
        lines.append(f"{name}: perplexity {side['perplexity']:.3f} +- {side['perplexity_error']:.3f}{right}.\n")
    change = result["quality"]["perplexity_change_percent"]
    return "".join(lines) + f"The perplexity changes by {change:+.2f} %, over {side['text']}.\n\n"


def filled(text: str, found: dict[str, tuple[Path, Result]]) -> str:
    """A page with everything that was measured in its place."""
    return PLACE.sub(lambda place: place[1] + "\n" + measured(found, place[2], place[3]) + "\n" + place[4], text)


def main() -> int:
    """Write the pages, or say which are out of date."""
    parser = argparse.ArgumentParser(description="Put what was measured into the pages of docs/ladder.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    check = parser.parse_args().check
    found, stale = newest(RESULTS), []
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        made = filled(text, found)
        if made != text:
            stale.append(page.name)
            if not check:
                page.write_text(made, encoding="utf-8")
    if check and stale:
        print(f"out of date, run python tools/make_ladder_pages.py: {', '.join(stale)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
