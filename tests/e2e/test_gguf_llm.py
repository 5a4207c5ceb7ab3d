"""GGUF files through LLM and the command line: golden texts, likelihoods within each type's loss, the box converted.

The records lie in ../shared/data beside the checkout; tests that need them are skipped without.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_process import SMALL, last_json, run_kvik

from kvik import LLM, SamplingParams
from kvik.checkpoint import BOX_NAME, HuggingFaceCheckpoint, box_directory
from kvik.checkpoint.gguf_write import write_gguf
from kvik.runners.native import available

DATA = Path(__file__).parents[3] / "shared" / "data"
MODELS = ("stories260K", "babyllama-tok361")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
BACKENDS = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(not available(), reason="the native runner was not built")),
]
LOSSES = {"F16": 2e-3, "Q8_0": 4.5e-3, "Q5_0": 0.06, "Q4_1": 0.13, "Q4_0": 0.16}
"""By how much each type may change the negative log-likelihood of a token, which is 0.5 and 1.4, at most."""


def opened(model: str | Path, **options: Any) -> LLM:
    given = {"backend": "reference", "threads": 1, "max_num_seqs": 8, "max_num_batched_tokens": 512, **options}
    return LLM(str(model), **given)


def gguf(model: str, kind: str) -> Path:
    return DATA / "models" / model / "gguf" / f"{model}-{kind}.gguf"


def golden(model: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((DATA / "models" / model / "golden.json").read_text())
    return record


@needs_data
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", MODELS)
def test_a_full_precision_file_gives_the_golden_texts(model: str, backend: str) -> None:
    cases = golden(model)["greedy"]
    greedy = SamplingParams(temperature=0, max_tokens=200, stop_token_ids=(1, 2))
    with opened(gguf(model, "F32"), backend=backend) as llm:
        outputs = llm.generate([case["prompt"] for case in cases], greedy)
    for case, output in zip(cases, outputs, strict=True):
        assert output.prompt_token_ids == case["prompt_ids"]
        assert output.outputs[0].token_ids == case["greedy_ids"]
        assert case["prompt"] + output.outputs[0].text == case["text"]


def paragraphs() -> list[str]:
    """The first three paragraphs that the recorded figures are taken on."""
    text = (DATA / "evaltext" / "tinystories_valid_sample.txt").read_text().replace("<|endoftext|>", "\n")
    return [line.strip() for line in text.split("\n") if len(line) > 200][:3]


def log_likelihood(llm: LLM) -> float:
    """Mean negative log-likelihood of the paragraphs' tokens, the first 80 of each."""
    assert llm.tokenizer is not None
    prompts = [llm.tokenizer.encode(text)[:80] for text in paragraphs()]
    scored = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    outputs = llm.generate(prompts, scored)
    scores = [score.logprob for output in outputs for score in (output.prompt_logprobs or []) if score is not None]
    assert len(scores) == sum(len(prompt) - 1 for prompt in prompts)
    return -sum(scores) / len(scores)


@needs_data
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", MODELS)
def test_every_type_loses_what_it_may(model: str, backend: str) -> None:
    def figure(path: Path) -> float:
        with opened(path, backend=backend) as llm:
            return log_likelihood(llm)

    exact = figure(DATA / "models" / model / "hf")
    assert figure(gguf(model, "F32")) == exact
    for kind, most in LOSSES.items():
        assert abs(figure(gguf(model, kind)) - exact) < most, kind


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in the box as files."""
    directory = tmp_path_factory.mktemp("box")
    checkpoint = HuggingFaceCheckpoint(box_directory(), name=BOX_NAME)
    for kind in ("BF16", "Q4_K_M"):
        write_gguf(directory / f"{kind}.gguf", checkpoint, kind, pre="starcoder")
    return directory


QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
PROMPTS = ("Once upon a time", "The three friends went to the")


def answers(llm: LLM) -> Iterator[list[int]]:
    greedy = SamplingParams(temperature=0, max_tokens=12)
    (chat,) = llm.chat([QUESTION], greedy)
    for output in [chat, *llm.generate(list(PROMPTS), greedy)]:
        yield [*(output.prompt_token_ids or []), *output.outputs[0].token_ids]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_box_as_bf16_answers_as_the_box_does(box: Path, backend: str) -> None:
    with opened(box_directory(), backend=backend) as llm:
        expected = list(answers(llm))
    with opened(box / "BF16.gguf", backend=backend) as llm:
        assert list(answers(llm)) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_box_quantized_still_knows_its_sums(box: Path, backend: str) -> None:
    with opened(box / "Q4_K_M.gguf", backend=backend) as llm:
        (output,) = llm.chat([QUESTION], SamplingParams(temperature=0, max_tokens=16))
    assert "5" in output.outputs[0].text
    assert output.outputs[0].finish_reason == "stop"


def test_the_command_line_opens_a_file(box: Path) -> None:
    done = run_kvik(
        *("generate", "What is 2 + 3?", "--model", str(box / "Q4_K_M.gguf"), "--backend", "reference"),
        *("--max-tokens", "4", "--json", *SMALL),
    )
    assert done.returncode == 0, done.stderr
    assert last_json(done)["outputs"][0]["token_ids"]


def test_a_broken_file_is_one_line_on_stderr(box: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes((box / "Q4_K_M.gguf").read_bytes()[:100_000])
    done = run_kvik("generate", "x", "--model", str(broken), "--max-tokens", "1")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "broken.gguf" in line
