"""Held-out tasks put to a loaded model: what it got right, and how it was asked, as evidence.

Whatever the model and the form of its weights, the questions, the way of asking and the judge are the same, so that a
quantized form can be held against the one it came from. This file knows nothing of the questions themselves.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvik import __version__
from kvik.bench.checks import EvidenceError
from kvik.bench.commit import find_commit
from kvik.bench.machine import describe
from kvik.bench.tasks import MAX_ANSWER_TOKENS, Item, Judged, judge
from kvik.bench.workbench import describe_model, describe_runner, flat_options, model_cost
from kvik.errors import InvalidRequestError
from kvik.request import SamplingParams

if TYPE_CHECKING:
    from kvik.engine.llm import LLM

GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_ANSWER_TOKENS)


def measure_tasks(llm: LLM, items: Sequence[Item], *, progress: bool) -> Judged:
    """Have a model answer every question, all of them together, and judge the answers.

    A template that lets its model think at length is asked not to: such answers are short. Raises InvalidRequestError
    for a model without a chat template and whatever made a question fail, such as one longer than the model's context.
    """

    def answer(conversations: list[list[dict[str, str]]]) -> list[str]:
        outputs = llm.chat(conversations, GREEDY, use_tqdm=progress, enable_thinking=False)
        for item, output in zip(items, outputs, strict=True):
            if output.error is not None:
                raise InvalidRequestError(f"a question of task {item.task} fails: {output.error}", param="task")
        return [output.outputs[0].text for output in outputs]

    return judge(items, answer)


def tasks_result(llm: LLM, judged: Judged) -> dict[str, Any]:
    """The result file of an evaluation: what was measured, with which model in which form, on which machine."""
    engine = llm.engine
    cost = model_cost(engine.config, engine.runner, engine.spec)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "kvik_version": __version__,
        "commit": find_commit(),
        "machine": describe(),
        "model": describe_model(engine.memory.model, cost),
        "options": flat_options(engine.config) | describe_runner(engine.runner),
        **judged.as_dict(),
    }


def write_result(result: dict[str, Any], path: Path) -> None:
    """Write a result as indented JSON. Raises EvidenceError if the file cannot be written."""
    _write(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_wrong(judged: Judged, path: Path) -> None:
    """Write the questions answered wrongly with what was said, as JSON lines. Raises EvidenceError."""
    records = [{**item.as_dict(), "said": said} for item, said in judged.wrong]
    _write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), path)


def _write(text: str, path: Path) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EvidenceError(f"{path} cannot be written: {error.strerror}") from error
