"""Quantized checkpoints from `kvik quantize` and GGUF files through LLM: answers, likelihoods, memory, and the bench.

The model in the box is converted once for the file. The native runner, in each form, is held against the reference on
the same file, and its answers against those of the box in bf16. What has to be calibrated is, on little text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_process import SMALL, last_json, run_kvik

from kvik import LLM, SamplingParams
from kvik.bench.accuracy import measure_tasks
from kvik.bench.tasks import read_items
from kvik.bench.workbench import engine_bench
from kvik.checkpoint import open_checkpoint, write_gguf
from kvik.cli.main import run
from kvik.engine.build import plan_checkpoint
from kvik.runners.native import available

pytestmark = pytest.mark.skipif(not available(), reason="the native runner was not built")

TASKS = ("definition", "follow_up", "addition_2", "addition_3", "refusal", "json", "extraction", "copying")
TEXT = "A KV cache keeps the keys and values of earlier tokens, so that a decode step does not compute them again."
KINDS = ("Q4_K_M", "Q8_0", "Q4_0")
FEW = ("--num-sequences", "8", "--sequence-length", "64")
JOBS = {
    "gptq": ("--method", "gptq", "--group-size", "128", "--act-order", *FEW),
    "awq": ("--method", "rtn", "--group-size", "128", "--format", "awq"),
    "w8a8": ("--method", "int8", *FEW),
}
FORMS = {
    "Q4_K_M": "k4+k6",
    "Q8_0": "bytes",
    "Q4_0": "int4",
    "gptq": "int4",
    "awq": "int4",
    "w8a8": "int8",
}
"""Those that quantized matrices are held in, the one of most bytes first."""
OF_BF16 = 6.0
"""Most that log-probabilities may be off where activations are rounded to 8 bits, in units of what bf16 costs on the
same runner; seen: 3.6.
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model in the box in every format."""
    directory, box = tmp_path_factory.mktemp("models"), open_checkpoint(None)
    made = {kind: directory / f"{kind}.gguf" for kind in KINDS} | {job: directory / job for job in JOBS}
    for kind in KINDS:
        write_gguf(made[kind], box, kind, pre="starcoder")
    for job, options in JOBS.items():
        assert run(["quantize", "box", str(made[job]), *options]) == 0
    return made


def opened(model: Path | None, **options: Any) -> LLM:
    given = {"backend": "native", "threads": 1, "kv_cache_memory": "16MiB", **options}
    return LLM(None if model is None else str(model), **given)


def log_probabilities(llm: LLM) -> list[float]:
    """Of a text's tokens but the first, each after those before it."""
    scored = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    (output,) = llm.generate([TEXT], scored)
    return [score.logprob for score in output.prompt_logprobs or [] if score is not None]


def off_reference(model: Path | None) -> float:
    """Mean difference of the native runner's log-probabilities from the reference's."""
    with opened(model) as native, opened(model, backend="reference") as reference:
        pairs = list(zip(log_probabilities(native), log_probabilities(reference), strict=True))
    assert len(pairs) > 20
    return sum(abs(one - other) for one, other in pairs) / len(pairs)


@pytest.fixture(scope="module")
def of_bf16() -> float:
    """What bf16 is off."""
    return off_reference(None)


@pytest.mark.parametrize("name", FORMS)
def test_the_native_runner_agrees_with_the_reference(name: str, models: dict[str, Path], of_bf16: float) -> None:
    assert 0 < off_reference(models[name]) <= OF_BF16 * of_bf16


@pytest.mark.parametrize("name", FORMS)
def test_a_quantized_box_answers_as_the_box_does(name: str, models: dict[str, Path]) -> None:
    """All but one question of those that the box answers in bf16; 8 bits answer all."""
    items = read_items(tasks=TASKS, limit=2)
    with opened(None) as box:
        right = measure_tasks(box, items, progress=False).as_dict()["overall"]["right"]
    with opened(models[name]) as llm:
        kept = measure_tasks(llm, items, progress=False).as_dict()["overall"]["right"]
    assert right >= len(items) - 1
    assert kept >= right - (0 if name in ("Q8_0", "w8a8") else 1)


@pytest.mark.parametrize("name", FORMS)
def test_memory_and_roofline_count_what_is_held(name: str, models: dict[str, Path]) -> None:
    with opened(models[name]) as llm:
        taken = llm.engine.runner.memory().weights
        cost = engine_bench(llm.engine).cost
        planned = plan_checkpoint(open_checkpoint(str(models[name])), llm.engine.config, "native")
    assert planned.weights == taken
    assert planned.kv_bytes_per_token == 8 * 2 * 2 * 64 * 2
    assert cost.forms.label == FORMS[name]
    assert 0.97 * taken < cost.weight_bytes() <= taken


def test_info_says_what_becomes_of_every_weight(models: dict[str, Path]) -> None:
    plan = last_json(run_kvik("info", "--model", str(models["Q4_K_M"]), "--json", *SMALL))["plan"]
    held = {(each["stored"], each["form"]): each for each in plan["held"]}
    assert {key: each["count"] for key, each in held.items()} == {
        ("Q4_K", "k4"): 48,
        ("Q6_K", "k6"): 9,
        ("F32", "f32"): 33,
    }
    assert all(each["loss"] is None for each in held.values())
    said = " ".join(run_kvik("info", "--model", str(models["gptq"]), *SMALL).stdout.split())
    assert "56 x gptq-int4 int4, " in said
    assert "4 bits a weight, an f16 scale" in said
