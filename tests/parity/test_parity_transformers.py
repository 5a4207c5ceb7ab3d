"""Every runner against transformers: same random weights, float32, teacher-forced, every logit of every position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from oracle import BF16_RATIO, FLOAT32_BOUND, max_difference, teacher_forced_logits, transformers_logits
from toys import LONG, TOYS, ToyCheckpoint, full_grid, random_checkpoint, token_ids

from kvik.checkpoint import open_checkpoint, write_checkpoint
from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.spec import DecoderSpec
from kvik.runners.runner import Runner
from kvik.step import Float32

pytestmark = pytest.mark.torch
pytest.importorskip("transformers")

CHUNKS = (13, 1, 1, 25)
LONG_CHUNKS = (120, 1, 1, 178)

NewRunner = Callable[..., Runner]
Answers = Callable[..., tuple[Path, Float32]]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Where a named toy lies on disk, and what transformers says to its ids; each asked once for all runners."""
    known: dict[tuple[str, str], Float32] = {}
    places: dict[str, Path] = {}

    def ask(name: str, spec: DecoderSpec, dtype: str = "float32", length: int = sum(CHUNKS)) -> tuple[Path, Float32]:
        if name not in places:
            places[name] = tmp_path_factory.mktemp(name)
            write_checkpoint(random_checkpoint(spec), places[name])
        if (name, dtype) not in known:
            known[name, dtype] = transformers_logits(places[name], token_ids(spec, length), dtype)
        return places[name], known[name, dtype]

    return ask


def check_float32(
    name: str, spec: DecoderSpec, runner: Runner, answers: Answers, chunks: tuple[int, ...] = CHUNKS
) -> None:
    directory, expected = answers(name, spec, length=sum(chunks))
    opened = open_checkpoint(str(directory))
    assert opened.spec == spec
    got = teacher_forced_logits(runner, opened, token_ids(spec, sum(chunks)), chunks)
    assert max_difference(got, expected) <= FLOAT32_BOUND


@pytest.mark.parametrize("name", TOYS)
def test_float32_logits_are_those_of_transformers(name: str, new_runner: NewRunner, answers: Answers) -> None:
    check_float32(name, TOYS[name], new_runner(), answers)


@pytest.mark.parametrize("name", ["llama-d16-g2-linear", "qwen3-d80-g8-window"])
def test_naive_attention_is_held_to_the_same_bound(name: str, new_runner: NewRunner, answers: Answers) -> None:
    check_float32(name, TOYS[name], new_runner(attention="naive"), answers)


@pytest.mark.parametrize("attention", ["flash", "naive"])
@pytest.mark.parametrize("name", LONG)
def test_long_prompts_are_held_to_the_same_bound(
    name: str, attention: str, new_runner: NewRunner, answers: Answers
) -> None:
    check_float32(name, LONG[name], new_runner(attention=attention), answers, LONG_CHUNKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", full_grid())
def test_full_grid_of_families_head_dims_and_groups(name: str, new_runner: NewRunner, answers: Answers) -> None:
    check_float32(name, full_grid()[name], new_runner(), answers)


@pytest.mark.parametrize("name", TOYS)
def test_bf16_error_is_at_most_that_of_transformers_in_bf16(name: str, new_runner: NewRunner, answers: Answers) -> None:
    """The weights are exact in bf16, so what differs from float32 is how the runner computes and what KV it keeps."""
    spec = replace(TOYS[name], dtype="bf16")
    ask = partial(answers, f"{name}-bf16", spec)
    directory, expected = ask(dtype="float32")
    allowed = BF16_RATIO * max_difference(ask(dtype="bfloat16")[1], expected)
    runner = new_runner(weights="bf16", kv_dtype="bf16")
    got = teacher_forced_logits(runner, open_checkpoint(str(directory)), token_ids(spec, sum(CHUNKS)), CHUNKS)
    assert 0 < max_difference(got, expected) <= allowed


def test_a_checkpoint_keeps_its_weights_on_the_way_through_the_disk(
    on_disk: Callable[[ToyCheckpoint], Checkpoint],
) -> None:
    checkpoint = random_checkpoint(TOYS["llama-d80-g1-biases"])
    opened = on_disk(checkpoint)
    for name in checkpoint.spec.tensor_shapes():
        assert (opened.tensor(name).float32() == checkpoint.weights[name]).all()
