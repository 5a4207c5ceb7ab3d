"""generation_config.json as defaults of sampling: what is followed, what is left alone, what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import byte_tokenizer

from kvik.checkpoint.box import BOX
from kvik.errors import CheckpointError
from kvik.text.sampling_defaults import sampling_defaults
from kvik.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"eos_token_id": [2, 0], "max_new_tokens": 99, "num_beams": 4}, {}),
        ({"do_sample": None, "temperature": None}, {}),
        ({"do_sample": True}, {}),
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.0, "top_p": 0.9}),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20}, {"temperature": 0.7, "top_p": 0.8, "top_k": 20}),
        ({"do_sample": True, "min_p": 0.1, "repetition_penalty": 1.05}, {"min_p": 0.1, "repetition_penalty": 1.05}),
    ],
)
def test_what_a_file_says_is_the_default_and_what_it_leaves_out_is_not(config: Any, expected: Any) -> None:
    assert sampling_defaults(config, "here") == expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"do_sample": "no"}, "do_sample is 'no'"),
        ({"do_sample": 0}, "do_sample is 0"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 0.5}, "top_k is 0.5"),
    ],
)
def test_what_no_parameter_can_be_is_refused_with_the_files_name(config: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=f"there/generation_config.json: {said}"):
        sampling_defaults(config, "there/generation_config.json")


def test_a_tokenizer_brings_its_models_defaults(tmp_path: Path) -> None:
    assert byte_tokenizer(tmp_path).sampling_defaults == {}
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": 7}))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.sampling_defaults == {"temperature": 0.6}
    assert tokenizer.with_chat_template("x").sampling_defaults == {"temperature": 0.6}


def test_the_model_in_the_box_asks_for_exact_answers() -> None:
    config = json.loads((BOX / "generation_config.json").read_text(encoding="utf-8"))
    assert sampling_defaults(config, "the box") == {"temperature": 0.0}
