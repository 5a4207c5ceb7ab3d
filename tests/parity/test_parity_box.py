"""The model in the box on every runner against transformers: teacher-forced logits of held-out conversations.

Skipped while the package comes without the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from oracle import BF16_RATIO, FLOAT32_BOUND, max_difference, teacher_forced_logits, transformers_logits

from kvik.bench.tasks import read_items
from kvik.checkpoint import open_checkpoint
from kvik.checkpoint.box import BOX
from kvik.runners.runner import Runner
from kvik.step import Float32
from kvik.text.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        not (BOX / "model.safetensors").is_file(), reason="the weights of the model in the box are not here"
    ),
]
pytest.importorskip("transformers")

NewRunner = Callable[..., Runner]
TASKS = ("definition", "follow_up", "addition_3", "json")


@cache
def conversation() -> tuple[int, ...]:
    """Held-out questions with their answers, one after the other, as one prompt."""
    messages = []
    for task in TASKS:
        item = read_items(tasks=[task], limit=1)[0]
        messages += [*item.messages, {"role": "assistant", "content": item.answer}]
    return tuple(Tokenizer.from_directory(BOX).encode_chat(messages, add_generation_prompt=False))


@cache
def expected(dtype: str) -> Float32:
    return transformers_logits(BOX, conversation(), dtype)


def chunks() -> tuple[int, ...]:
    return (37, 1, 1, len(conversation()) - 39)


def test_float32_logits_are_those_of_transformers(new_runner: NewRunner) -> None:
    runner = new_runner(weights="f32", kv_dtype="f32")
    got = teacher_forced_logits(runner, open_checkpoint(None), conversation(), chunks())
    assert len(conversation()) > 200
    assert max_difference(got, expected("float32")) <= FLOAT32_BOUND


def test_bf16_error_is_at_most_that_of_transformers_in_bf16(new_runner: NewRunner) -> None:
    runner = new_runner(weights="bf16", kv_dtype="bf16")
    got = teacher_forced_logits(runner, open_checkpoint(None), conversation(), chunks())
    allowed = BF16_RATIO * max_difference(expected("bfloat16"), expected("float32"))
    assert 0 < max_difference(got, expected("float32")) <= allowed
