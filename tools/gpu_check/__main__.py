"""`python -m tools.gpu_check --out DIR`: checks and measures the CUDA runner on this machine's GPU in a few minutes.

Runs from the source tree without installing anything; it needs torch, triton, numpy and pytest; one section needs
transformers. Every section is guarded: one that fails is reported with its error and the others go on. Results are
written to DIR/gpu_check.json after each section, and a short table is printed last. Past the budget none starts.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.gpu_check import against, measure, parity, setting
from tools.gpu_check.table import table

Section = Callable[[dict[str, Any]], Any]
SECTIONS: dict[str, Section] = {
    "machine": setting.machine,
    "parity": parity.run_tests,
    "limits": setting.limits,
    "decode": measure.decode_with_graphs,
    "prefill": measure.prefill,
    "preset": measure.preset,
    "decode_eager": measure.decode_eager,
    "decode_compiled_glue": measure.decode_compiled,
    "transformers": against.transformers_decode,
    "decode_int8_kv": measure.decode_int8_kv,
    "decode_fp8_kv": measure.decode_fp8_kv,
    "decode_int4": measure.decode_int4,
    "decode_int8": measure.decode_int8,
    "decode_deterministic": measure.decode_deterministic,
}
"""In order of importance. Each gets all results so far and returns its own."""


def main() -> int:
    """0 if no section failed and parity holds."""
    arguments = parse()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    started, results = time.monotonic(), {}
    for name in arguments.sections or SECTIONS:
        spent = time.monotonic() - started
        if spent > arguments.budget_s:
            results[name] = {"skipped": f"{spent:.0f} s of {arguments.budget_s} s were spent"}
            continue
        print(f"[{spent:5.0f} s] {name}", flush=True)
        results[name] = guarded(SECTIONS[name], results)
        (out / "gpu_check.json").write_text(json.dumps(results, indent=1))
    (out / "gpu_check.json").write_text(json.dumps(results, indent=1))
    print(table(results), flush=True)
    failed = any(isinstance(result, dict) and "error" in result for result in results.values())
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=__doc__)
    parser.add_argument("--out", required=True, help="folder for gpu_check.json")
    parser.add_argument("--budget-s", type=int, default=400, help="no section starts later than this")
    parser.add_argument("--sections", nargs="*", choices=list(SECTIONS), help="only these")
    return parser.parse_args()


def guarded(section: Section, results: dict[str, Any]) -> Any:
    """What a section gives, or the error it ended with."""
    started = time.monotonic()
    try:
        result = section(results)
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"[:2000]}
    if isinstance(result, dict):
        result["seconds"] = round(time.monotonic() - started, 1)
    return result


if __name__ == "__main__":
    raise SystemExit(main())
