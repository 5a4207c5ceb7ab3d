"""Structured output with a trained model: valid, reproducible, the same alone and in a batch. Skipped without it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kvik import LLM, SamplingParams
from kvik.errors import InvalidRequestError
from kvik.text import grammar
from kvik.text.tool_grammar import tool_calls

MODEL = Path("../shared/data/models/stories260K/hf")
PROMPTS = ["Once upon a time", "Lily had a", "The big dog", "Tom and Sue"]
PET = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "kind": {"enum": ["dog", "cat", "Ünicorn"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
TOOL = {"name": "find_pet", "parameters": PET}
MADE = grammar.json_schema(PET)


@pytest.fixture(scope="module", params=["auto", "reference"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    if not MODEL.is_dir():
        pytest.skip(f"{MODEL} is not here")
    with LLM(str(MODEL), backend=request.param, max_model_len=400, kv_cache_memory="32MiB", threads=2) as made:
        yield made


def generate(llm: LLM, prompts: list[str], params: SamplingParams | list[SamplingParams]) -> Any:
    return llm.generate(prompts, params, use_tqdm=False)


@pytest.mark.parametrize("more", [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.9}, {"top_k": 5, "n": 2}])
def test_answers_are_valid_whatever_the_rules_of_sampling(llm: LLM, more: dict[str, Any]) -> None:
    params = SamplingParams(**{"grammar": MADE, "max_tokens": 200, "seed": 1, "logprobs": 1, **more})
    for output in generate(llm, PROMPTS, params):
        for choice in output.outputs:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.text), PET)
            assert len(choice.logprobs) == len(choice.token_ids)


def test_a_text_is_the_same_alone_and_beside_others_with_other_grammars(llm: LLM) -> None:
    made = [MADE, grammar.regex("[A-Z][a-z]{2,8}( [a-z]+){3}[.]"), grammar.choice(["yes", "no"]), None]
    params = [SamplingParams(grammar=each, max_tokens=120, seed=i, n=2) for i, each in enumerate(made)]
    together = generate(llm, PROMPTS, params)
    for prompt, each, output in zip(PROMPTS, params, together, strict=True):
        alone = generate(llm, [prompt], [each])[0]
        assert [choice.token_ids for choice in alone.outputs] == [choice.token_ids for choice in output.outputs]
    assert all(re.fullmatch("[A-Z][a-z]{2,8}( [a-z]+){3}[.]", choice.text) for choice in together[1].outputs)
    assert {choice.text for choice in together[2].outputs} <= {"yes", "no"}


def test_a_tool_call_is_read_back_as_one(llm: LLM) -> None:
    params = SamplingParams(grammar=tool_calls([TOOL], "required", parallel=False), max_tokens=250, seed=3)
    text = generate(llm, PROMPTS[:1], params)[0].outputs[0].text
    found = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", text, re.DOTALL)
    assert found is not None
    call = json.loads(found[1])
    assert call["name"] == "find_pet"
    jsonschema.validate(call["arguments"], PET)


def test_an_answer_cut_by_max_tokens_is_the_beginning_of_a_valid_one(llm: LLM) -> None:
    whole, cut = (
        generate(llm, PROMPTS[:1], SamplingParams(grammar=MADE, max_tokens=most, seed=5))[0].outputs[0]
        for most in (200, 12)
    )
    assert cut.finish_reason == "length"
    assert whole.token_ids[:12] == cut.token_ids


def test_a_grammar_that_is_none_is_the_error_of_its_request(llm: LLM) -> None:
    params = [SamplingParams(grammar="start: nothing"), SamplingParams(grammar=MADE, max_tokens=200, seed=1)]
    bad, good = generate(llm, PROMPTS[:2], params)
    assert isinstance(bad.error, InvalidRequestError)
    assert good.outputs[0].finish_reason == "stop"


def test_a_dummy_has_no_tokens_to_spell_with() -> None:
    with (
        LLM("dummy:tiny-llama", kv_cache_memory="8MiB") as llm,
        pytest.raises(InvalidRequestError, match="no tokenizer"),
    ):
        llm.generate([[1, 2]], SamplingParams(grammar=MADE), use_tqdm=False)
