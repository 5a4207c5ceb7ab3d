"""The CUDA runner against the reference: the same logits for every family, form, chunking and attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_bench import ON_GPU, new_runner
from oracle import (
    BLOCK,
    FLOAT32_BOUND,
    greedy,
    max_difference,
    plan_for,
    scheduled_logits,
    shuffled_tables,
    teacher_forced_logits,
)
from toys import LONG, TOYS, random_checkpoint, token_ids, toy

from kvik.config import RunnerOptions
from kvik.errors import BackendError, ConfigError
from kvik.runners.reference import ReferenceRunner
from kvik.step import Float32, ScorePlan, as_int32

CHUNKS = [7, 1, 1, 20, 11]
SMALL = toy("qwen3", hidden=32, heads=4, group=2, head_dim=16, vocab=40, layers=1, tied_head=True)
"""Few programs to a step: the interpreter takes a while over each."""


def reference_logits(spec: Any, ids: Sequence[int], **forms: str) -> Float32:
    runner = ReferenceRunner(RunnerOptions(), **({"weights": "f32", "kv_dtype": "f32"} | forms))
    return teacher_forced_logits(runner, random_checkpoint(spec), ids)


@pytest.mark.parametrize("spec", TOYS.values(), ids=TOYS.keys())
def test_logits_are_the_references_however_the_prompt_is_cut(spec: Any) -> None:
    ids = token_ids(spec, sum(CHUNKS))
    ours = teacher_forced_logits(new_runner(), random_checkpoint(spec), ids, CHUNKS)
    assert max_difference(ours, reference_logits(spec, ids)) <= FLOAT32_BOUND


def check_kernels(spec: Any, chunks: Sequence[int]) -> None:
    ids = token_ids(spec, sum(chunks))
    ours = teacher_forced_logits(new_runner(kernels=True), random_checkpoint(spec), ids, chunks)
    assert max_difference(ours, reference_logits(spec, ids)) <= FLOAT32_BOUND


@pytest.mark.parametrize("name", ["qwen3-d16-g4-tied", "llama-d80-g1-biases", "mistral-d8-g2-window"])
def test_kernels_give_the_references_logits(name: str) -> None:
    """In the interpreter of a single layer: the next runs the same kernels."""
    spec = TOYS[name]
    if ON_GPU:
        check_kernels(spec, CHUNKS)
    else:
        check_kernels(replace(spec, num_layers=1, sliding_window=spec.sliding_window[:1]), [2, 1])


@pytest.mark.slow
@pytest.mark.parametrize("spec", TOYS.values(), ids=TOYS.keys())
def test_kernels_give_the_references_logits_of_every_toy(spec: Any) -> None:
    check_kernels(spec, [3, 1, 1] if not ON_GPU else CHUNKS)


FORMS = [("int8", "f32"), ("int4", "f32"), ("f32", "int8"), ("int4", "int8")]
IN_KERNELS = [("int8", "f32"), ("int4", "int8")]
"""Of those, in which every form is once."""


@pytest.mark.parametrize(
    ("weights", "kv_dtype", "kernels"),
    [(*forms, False) for forms in FORMS]
    + [pytest.param(*forms, True, marks=[] if forms in IN_KERNELS or ON_GPU else pytest.mark.slow) for forms in FORMS],
)
def test_quantized_forms_are_the_references(weights: str, kv_dtype: str, kernels: bool) -> None:
    """Quantized weights are computed with in float32 here; a GPU computes in bf16 and is held more loosely."""
    chunks = [2, 1] if kernels else [6, 1, 1]
    ids = token_ids(SMALL, sum(chunks))
    forms = {"weights": weights, "kv_dtype": kv_dtype}
    ours = teacher_forced_logits(new_runner(kernels=kernels, **forms), random_checkpoint(SMALL), ids, chunks)
    theirs = reference_logits(SMALL, ids, **forms)
    in_bf16 = ON_GPU and weights != "f32"
    bound = 0.15 * np.abs(theirs).max() if in_bf16 else 2e-3 if kv_dtype == "int8" else FLOAT32_BOUND
    assert max_difference(ours, theirs) <= bound


def test_bf16_is_near_the_reference_of_the_same_weights() -> None:
    spec = TOYS["llama-d64-g4-llama3"]
    ids = token_ids(spec, 40)
    ours = teacher_forced_logits(new_runner(weights="bf16", kv_dtype="bf16"), random_checkpoint(spec), ids, CHUNKS)
    theirs = reference_logits(spec, ids, weights="bf16", kv_dtype="bf16")
    assert max_difference(ours, theirs) <= 0.05 * np.abs(theirs).max()


@pytest.mark.parametrize("spec", LONG.values(), ids=LONG.keys())
def test_long_prompts_beside_each_other(spec: Any) -> None:
    prompts = [token_ids(spec, length, seed) for seed, length in enumerate((300, 140))]
    tables, num_blocks = shuffled_tables([300, 140], BLOCK)
    schedule = [{0: 299, 1: 60}, {1: 79, 0: 1}, {1: 1}]
    answers = []
    for runner in (new_runner(), ReferenceRunner(RunnerOptions(), weights="f32", kv_dtype="f32")):
        runner.load(random_checkpoint(spec))
        runner.allocate(num_blocks, BLOCK)
        answers.append(scheduled_logits(runner, prompts, tables, schedule))
    assert max(max_difference(a, b) for a, b in zip(*answers, strict=True)) <= FLOAT32_BOUND


def ready(spec: Any, prompts: Sequence[Sequence[int]], **options: Any) -> tuple[Any, Any]:
    tables, num_blocks = shuffled_tables([len(ids) for ids in prompts], BLOCK)
    runner = new_runner(**options)
    runner.load(random_checkpoint(spec))
    runner.allocate(num_blocks, BLOCK)
    return runner, tables


def test_run_draws_and_scores_what_logits_say() -> None:
    spec = TOYS["llama-d16-g2-linear"]
    prompts = [token_ids(spec, length, seed) for seed, length in enumerate((9, 41, 1))]
    runner, tables = ready(spec, prompts)
    spans = {key: (0, len(ids)) for key, ids in enumerate(prompts)}
    logits = runner.logits(plan_for(prompts, spans, tables))
    score = ScorePlan(as_int32([0, 4]), as_int32([5, 2]), as_int32([0, 2]))
    result = runner.run(plan_for(prompts, spans, tables, sample=greedy([2, 0, 1, 0]), score=score))
    assert result.token_ids.tolist() == logits[[50, 8, 49, 8]].argmax(axis=1).tolist()
    exact = logits[[0, 4]] - np.log(np.exp(logits[[0, 4]].astype(np.float64)).sum(axis=1, keepdims=True))
    assert np.allclose(result.scored.logprobs, exact[[0, 1], [5, 2]], atol=1e-5)
    assert result.scored.top_ids[1].tolist() == np.argsort(-exact[1])[:2].tolist()


def test_copied_blocks_are_read_like_their_sources() -> None:
    spec = TOYS["qwen3-d16-g4-tied"]
    prompts = [token_ids(spec, 40), token_ids(spec, 40)]
    runner, tables = ready(spec, prompts, kv_dtype="int8")
    runner.logits(plan_for(prompts, {0: (0, 39)}, tables))
    expected = runner.logits(plan_for(prompts, {0: (39, 40)}, tables))
    copies = list(zip(tables[0].tolist(), tables[1].tolist(), strict=True))
    assert np.array_equal(runner.logits(plan_for(prompts, {1: (39, 40)}, tables, copies=copies)), expected)


@pytest.mark.parametrize(
    ("field", "value", "message"), [("token_ids", -1, "token id -1"), ("block_tables", 99, "block 99")]
)
def test_what_lies_outside_is_refused_before_a_device_sees_it(field: str, value: int, message: str) -> None:
    spec = TOYS["qwen3-d16-g4-tied"]
    prompts = [token_ids(spec, 5)]
    runner, tables = ready(spec, prompts)
    plan = plan_for(prompts, {0: (0, 5)}, tables)
    getattr(plan, field).reshape(-1)[0] = value
    with pytest.raises(ValueError, match=message):
        runner.run(plan)


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(BackendError, match="no model is loaded"):
        new_runner().allocate(1, 32)
    with pytest.raises(ConfigError, match="kv_dtype is 'q3'"):
        new_runner(kv_dtype="q3").load(random_checkpoint(TOYS["qwen2-d16-g4"]))
    runner = new_runner()
    runner.load(random_checkpoint(TOYS["qwen2-d16-g4"]))
    with pytest.raises(BackendError, match="no KV cache"):
        runner.run(plan_for([[1]], {0: (0, 1)}, [as_int32([0])]))


@pytest.mark.skipif(ON_GPU, reason="needs a machine without a GPU")
def test_without_a_gpu_the_backend_says_so_in_a_line() -> None:
    from kvik.runners.cuda.runner import CudaRunner

    with pytest.raises(BackendError, match=r"^backend is 'cuda', which cannot serve here: [^\n]+$"):
        CudaRunner(RunnerOptions())


@pytest.mark.skipif(not ON_GPU, reason="graphs are captured on a GPU only")
def test_captured_steps_give_the_logits_of_launched_ones() -> None:
    """Rows of several lengths, so that buckets are padded; the cache's other blocks must stay as they are."""
    spec = TOYS["qwen3-d128-g2-theta1e6"]
    prompts = [token_ids(spec, length, seed) for seed, length in enumerate((40, 35, 9, 50, 38))]
    spans = {key: (0, len(ids) - 1) for key, ids in enumerate(prompts)}
    last = {key: (len(ids) - 1, len(ids)) for key, ids in enumerate(prompts)}
    answers = []
    for eager in (True, False):
        runner, tables = ready(spec, prompts, kernels=True, eager=eager)
        runner.logits(plan_for(prompts, spans, tables))
        answers.append([runner.logits(plan_for(prompts, last, tables)), runner.logits(plan_for(prompts, last, tables))])
    assert max_difference(answers[0][0], answers[1][0]) <= FLOAT32_BOUND
    assert np.array_equal(*answers[1])


def test_memory_is_what_is_held() -> None:
    spec = TOYS["qwen3-d16-g4-tied"]
    runner, _ = ready(spec, [token_ids(spec, 40)], kv_dtype="int8")
    blocks = runner.memory().kv // (BLOCK * runner.kv_bytes_per_token())
    assert runner.kv_bytes_per_token() == 2 * 3 * 2 * (16 + 4)
    assert runner.memory().kv == blocks * BLOCK * runner.kv_bytes_per_token()
    assert runner.memory().weights >= spec.num_parameters() * 4
    runner.close()
    assert runner.memory().weights == runner.memory().kv == 0


@pytest.mark.parametrize(
    "schedules",
    [
        ([{0: 2}, {1: 2}], [{0: 1, 1: 1}, {0: 1, 1: 1}]),
        pytest.param(
            ([{0: 5}, {1: 3}], [{0: 2, 1: 2}, {0: 1, 1: 1}, {0: 2}]), marks=[] if ON_GPU else pytest.mark.slow
        ),
    ],
    ids=["short", "longer"],
)
def test_a_row_has_the_same_bytes_in_any_company_if_that_is_asked_for(schedules: tuple[Any, Any]) -> None:
    """Prompts whole and in pieces, alone and beside others: to the last bit."""
    prompts = [token_ids(SMALL, sum(step.get(key, 0) for step in schedules[0]), key) for key in (0, 1)]
    results = []
    for schedule in schedules:
        runner, tables = ready(SMALL, prompts, kernels=True, deterministic=True)
        results.append(scheduled_logits(runner, prompts, tables, schedule))
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
