"""Accuracy on held-out questions through Kvik: `python -m tools.box.evaluate --model DIR [--count N] [--weights int8]`.

Questions are drawn afresh from the held-out side, as many as asked for; those that ship with the model are a part of
the same side. Writes one JSON object, and the wrong answers if a file is named for them. This file knows nothing of
training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kvik import LLM, SamplingParams
from kvik.bench.tasks import MAX_ANSWER_TOKENS, Judged, judge
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


def measure(model: Path, tasks: list[str], count: int, options: dict[str, Any]) -> Judged:
    """Answers to `count` questions of each task, judged."""
    items = [item for task in tasks for item in heldout.items(task, count)]
    params = SamplingParams(temperature=0.0, max_tokens=MAX_ANSWER_TOKENS)
    with LLM(model=str(model), max_num_seqs=32, kv_cache_memory="512MiB", **options) as llm:

        def answer(conversations: list[list[dict[str, str]]]) -> list[str]:
            outputs = llm.chat(conversations, params, use_tqdm=False)
            for output in outputs:
                if output.error is not None:
                    raise output.error
            return [output.outputs[0].text for output in outputs]

        return judge(items, answer)


def table(judged: Judged) -> str:
    """Accuracies as lines of text, with the bound where there is one."""
    lines = []
    for task, accuracy in judged.by_task.items():
        bound = f"  (at least {100 * BOUNDS[task]:.0f})" if task in BOUNDS else ""
        share, error = 100 * accuracy.share, 100 * accuracy.standard_error
        lines.append(f"{task:12} {share:6.2f} +- {error:4.2f} %  of {accuracy.count}{bound}")
    return "\n".join(lines)


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
    judged = measure(args.model, args.tasks.split(","), args.count, options)
    print(table(judged))
    if args.json:
        result = {"model": str(args.model), "options": options, **judged.as_dict()}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if args.wrong:
        records = [{**item.as_dict(), "said": said} for item, said in judged.wrong]
        args.wrong.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    main()
