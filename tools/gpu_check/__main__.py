"""`python -m tools.gpu_check --out DIR`: checks and measures the CUDA runner on this machine's GPU in a few minutes.

Runs from the source tree without installing anything; it needs torch, triton, numpy and pytest; one section needs
transformers. Sections run in a process beside this one, which is ended with a section that runs past its limit: one
that fails or hangs is reported and the others go on. Results are written to DIR/gpu_check.json after each section, and
a short table is printed last. Past the budget none starts, and at the limit the last one ends.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tools.gpu_check.sections import SECTIONS, Section
from tools.gpu_check.table import table
from tools.gpu_check.worker import Worker


def main() -> int:
    """0 if no section failed and parity holds."""
    arguments = parse()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    chosen = {name: SECTIONS[name] for name in arguments.sections or SECTIONS}
    results = run_all(chosen, out / "gpu_check.json", arguments.budget_s, arguments.limit_s)
    print(table(results), flush=True)
    failed = any(isinstance(result, dict) and "error" in result for result in results.values())
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=__doc__)
    parser.add_argument("--out", required=True, help="folder for gpu_check.json")
    parser.add_argument("--budget-s", type=float, default=400, help="no section starts later than this")
    parser.add_argument("--limit-s", type=float, default=470, help="no section goes on longer than this")
    parser.add_argument("--sections", nargs="*", choices=list(SECTIONS), help="only these")
    return parser.parse_args()


def run_all(sections: dict[str, Section], target: Path, budget_s: float, limit_s: float) -> dict[str, Any]:
    """The results of all sections by name; `target` has those so far at any time."""
    started, results, worker = time.monotonic(), {}, Worker()
    try:
        for name, section in sections.items():
            spent = time.monotonic() - started
            if spent > budget_s:
                results[name] = {"skipped": f"{spent:.0f} s of {budget_s:.0f} s were spent"}
            else:
                print(f"[{spent:5.0f} s] {name}", flush=True)
                results[name] = worker.run(section.where, results, min(section.limit_s, limit_s - spent))
            target.write_text(json.dumps(results, indent=1))
    finally:
        worker.close()
    return results


if __name__ == "__main__":
    raise SystemExit(main())
