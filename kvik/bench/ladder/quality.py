"""What 4-bit weights cost in quality: perplexity of a text and answers to held-out questions, before and after.

The text is the held-out questions with their answers; a model without a tokenizer is given random tokens, which says
how far the rounding moves it and nothing about language. This file knows nothing of rungs or of speed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from kvik.bench.accuracy import measure_tasks
from kvik.bench.ladder.claims import perplexity_change_percent
from kvik.bench.perplexity import measure_perplexity
from kvik.bench.tasks import read_items
from kvik.config import EngineConfig
from kvik.engine.build import build_engine
from kvik.engine.llm import LLM
from kvik.request import SamplingParams

WINDOW = 512
SCORE = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)


def measure_quality(configs: Mapping[str, EngineConfig], tokens: int, per_task: int) -> dict[str, Any]:
    """Perplexity over at most `tokens` tokens, and accuracy on `per_task` questions of each task, of two forms.

    Raises what made a window or a question fail.
    """
    sides = {name: _measure(config, tokens, per_task) for name, config in configs.items()}
    return {"sides": sides, "perplexity_change_percent": perplexity_change_percent(sides)}


def _measure(config: EngineConfig, tokens: int, per_task: int) -> dict[str, Any]:
    with LLM.from_engine(build_engine(config)) as llm:
        text, what = _text(llm, tokens)
        window = min(WINDOW, llm.engine.memory.max_model_len - 1)
        scored = measure_perplexity(text, window, [], lambda windows: _score(llm, windows))
        found = {**scored.as_dict(), "text": what, "tasks": None}
        if per_task and llm.tokenizer is not None and llm.tokenizer.has_chat_template:
            judged = measure_tasks(llm, read_items(limit=per_task), progress=False)
            found["tasks"] = {**judged.overall.as_dict(), "per_task": per_task}
        return found


def _text(llm: LLM, tokens: int) -> tuple[list[int], str]:
    if llm.tokenizer is None:
        draw, top = random.Random(llm.engine.config.runner.seed), llm.engine.spec.vocab_size - 1
        return [draw.randint(0, top) for _ in range(tokens)], "random tokens"
    pieces = (f"{item.messages[-1]['content']}\n{item.answer}\n\n" for item in read_items())
    text = ""
    while len(text) < 8 * tokens and (piece := next(pieces, "")):
        text += piece
    return llm.tokenizer.encode(text, add_special_tokens=False)[:tokens], "held-out questions with their answers"


def _score(llm: LLM, windows: list[list[int]]) -> list[list[float]]:
    outputs = llm.generate(windows, SCORE, use_tqdm=False)
    for output in outputs:
        if output.error is not None:
            raise output.error
    return [[entry.logprob for entry in output.prompt_logprobs or () if entry is not None] for output in outputs]
