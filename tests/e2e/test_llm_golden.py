"""Two small trained models through LLM: golden texts and recorded likelihoods, on every backend there is.

The records lie in ../shared/data beside the checkout, made by an independent numpy forward; without that folder the
tests are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvik import LLM, SamplingParams
from kvik.request import RequestOutput
from kvik.runners.native import available

DATA = Path(__file__).parents[3] / "shared" / "data"
MODELS = ("stories260K", "babyllama-tok361")
STOPS = (1, 2)
NLL_RELATIVE = 1e-5
BACKENDS = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(not available(), reason="the native runner was not built")),
]

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, backend: str) -> Iterator[tuple[str, LLM]]:
    directory = DATA / "models" / request.param / "hf"
    with LLM(str(directory), backend=backend, threads=1, max_num_seqs=16, max_num_batched_tokens=512) as llm:
        yield request.param, llm


def golden(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((DATA / "models" / name / "golden.json").read_text())
    return record


def params(**more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=200, stop_token_ids=STOPS, **more)


def test_greedy_texts_are_the_golden_ones(model: tuple[str, LLM]) -> None:
    name, llm = model
    cases = golden(name)["greedy"]
    outputs = llm.generate([case["prompt"] for case in cases], params())
    for case, output in zip(cases, outputs, strict=True):
        assert output.prompt_token_ids == case["prompt_ids"]
        assert output.outputs[0].token_ids == case["greedy_ids"]
        assert case["prompt"] + output.outputs[0].text == case["text"]


def test_streams_and_prompts_of_token_ids_give_the_same(model: tuple[str, LLM]) -> None:
    name, llm = model
    for case in golden(name)["greedy"]:
        assert case["prompt"] + "".join(llm.generate_stream(case["prompt"], params())) == case["text"]
    cases = golden(name)["greedy"]
    outputs = llm.generate([case["prompt_ids"] for case in cases], params())
    assert [output.outputs[0].token_ids for output in outputs] == [case["greedy_ids"] for case in cases]


def test_a_stop_string_cuts_the_golden_text(model: tuple[str, LLM]) -> None:
    name, llm = model
    case = golden(name)["greedy"][0]
    (output,) = llm.generate(case["prompt"], params(stop="little girl"))
    assert case["prompt"] + output.outputs[0].text == case["text"].split("little girl")[0]
    assert output.outputs[0].stop_reason == "little girl"


def pieces_of_text(which: str) -> list[str]:
    """The pieces a record's figure was taken on, cut from the file it names."""
    if which.startswith("tinystories_sample_cs336"):
        text = (DATA / "evaltext" / "tinystories_sample_cs336.txt").read_text()
        return [piece.strip() for piece in text.split("<|endoftext|>") if len(piece) > 100]
    text = (DATA / "evaltext" / "tinystories_valid_sample.txt").read_text().replace("<|endoftext|>", "\n")
    return [line.strip() for line in text.split("\n") if len(line) > 200][:20]


def likelihoods(llm: LLM, sequences: list[list[int]]) -> Iterator[float]:
    """Log-likelihood of every token but the first. The last one is not prompt but forced by its bias: what is reported
    is the model's own distribution.
    """
    forced = [
        SamplingParams(temperature=0, max_tokens=1, logprobs=0, prompt_logprobs=0, logit_bias={ids[-1]: 100})
        for ids in sequences
    ]
    outputs: list[RequestOutput] = llm.generate([ids[:-1] for ids in sequences], forced)
    for ids, output in zip(sequences, outputs, strict=True):
        assert output.error is None
        assert output.outputs[0].token_ids == ids[-1:]
        scores = [*(output.prompt_logprobs or [])[1:], *(output.outputs[0].logprobs or [])]
        assert [score.token_id for score in scores if score] == ids[1:]
        yield from (score.logprob for score in scores if score)


@pytest.mark.parametrize("which", ["tinystories_sample_cs336", "tinystories_valid_sample(first 20 paras>200ch)"])
def test_texts_score_as_recorded(model: tuple[str, LLM], which: str) -> None:
    name, llm = model
    assert llm.tokenizer is not None
    context = llm.engine.spec.max_position
    sequences = [llm.tokenizer.encode(piece)[:context] for piece in pieces_of_text(which)]
    scores = list(likelihoods(llm, sequences))
    recorded = golden(name)["eval"][which]
    assert len(scores) == recorded["tokens"]
    assert -sum(scores) / len(scores) == pytest.approx(recorded["nll_per_token"], rel=NLL_RELATIVE)
