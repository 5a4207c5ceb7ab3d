"""Accuracy on held-out questions drawn afresh: `python -m tools.box.evaluate --model DIR [--count N] [--weights int8]`.

The same questions, judge and result as `kvik eval tasks`, but as many of each task as asked for, and held against what
the model must reach; those that ship with the model are a part of the same side. This file knows nothing of training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kvik import LLM
from kvik.bench.accuracy import measure_tasks, tasks_result, write_result, write_wrong
from kvik.bench.tasks import Judged
from tools.box import heldout
from tools.box.train import DEFAULT_OUT

BOUNDS = {
    "definition": 0.95,
    "refusal": 0.95,
    "addition_2": 0.99,
    "addition_3": 0.95,
    "extraction": 0.97,
    "copying": 0.97,
    "json": 0.97,
    "needle": 0.95,
    "needle_long": 0.95,
}
"""What the model must reach."""


def measure(model: Path, tasks: list[str], count: int, options: dict[str, Any]) -> tuple[Judged, dict[str, Any]]:
    """Answers to `count` questions of each task, judged, and the result that says so."""
    items = [item for task in tasks for item in heldout.items(task, count)]
    with LLM(model=str(model), max_num_seqs=32, kv_cache_memory="512MiB", **options) as llm:
        judged = measure_tasks(llm, items, progress=True)
        return judged, tasks_result(llm, judged)


def missed(judged: Judged) -> list[str]:
    """The tasks that stay below their bound."""
    return [
        f"{task}: {100 * accuracy.share:.1f} %, expected at least {100 * BOUNDS[task]:.0f} %"
        for task, accuracy in judged.by_task.items()
        if accuracy.share < BOUNDS.get(task, 0)
    ]


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description="Accuracy on held-out questions, through Kvik.")
    parser.add_argument("--model", type=Path, default=DEFAULT_OUT / "model")
    parser.add_argument("--count", type=int, default=200, help="questions of each task")
    parser.add_argument("--tasks", default=",".join(heldout.MAKERS), help="names with commas between them")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--wrong", type=Path, help="write wrong answers here, as JSON lines")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    options = {"weights": args.weights, "kv_dtype": args.kv_dtype, "threads": args.threads}
    judged, result = measure(args.model, args.tasks.split(","), args.count, options)
    print("\n".join([*judged.lines(), *missed(judged)]))
    if args.json:
        write_result(result, args.json)
    if args.wrong:
        write_wrong(judged, args.wrong)


if __name__ == "__main__":
    main()
