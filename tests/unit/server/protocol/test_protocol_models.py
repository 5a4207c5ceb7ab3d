"""/v1/models, /tokenize and /detokenize, and conversations that go on inside their last message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from protocol_toys import HELLO, TERMS, token_bytes

from kvik.server.protocol.errors import ApiError
from kvik.server.protocol.final_message import cut_after_text
from kvik.server.protocol.models import ServedModel, find_model, model_body, models_body
from kvik.server.protocol.tokenize import (
    TokenizeCall,
    detokenize_body,
    read_detokenize,
    read_tokenize,
    tokenize_body,
)
from kvik.text.tokenizer import Tokenizer

MODELS = [ServedModel("org/name", 5, 64), ServedModel("toy", 6, 32)]


def test_the_list_of_models() -> None:
    body = json.loads(models_body(MODELS))
    assert body["object"] == "list"
    assert body["data"][1] == json.loads(model_body(MODELS[1]))
    assert body["data"][0] == {
        **{"id": "org/name", "object": "model", "created": 5, "owned_by": "kvik"},
        "max_model_len": 64,
    }


def test_official_types_accept_models() -> None:
    pytest.importorskip("openai")
    from openai.types import Model

    assert Model.model_validate_json(model_body(MODELS[0])).id == "org/name"


@pytest.mark.parametrize("name", ["name", "../../etc/passwd", "toy\0b", "Toy", "x" * 10_000, "org/name/"])
def test_unknown_models_are_not_found(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        find_model(MODELS, name)
    error = caught.value
    assert (error.status, error.type, error.code, error.param) == (
        *(404, "invalid_request_error", "model_not_found"),
        "model",
    )
    assert len(error.body()) < 300


def test_a_model_is_found_by_its_whole_name() -> None:
    assert find_model(MODELS, "org/name") is MODELS[0]


def test_requests_to_tokenize() -> None:
    assert read_tokenize({"prompt": ""}, TERMS) == TokenizeCall(None, "")
    assert read_tokenize(
        {"model": "toy", "prompt": "x", "add_special_tokens": False, "return_token_strs": True}, TERMS
    ) == (TokenizeCall("toy", "x", None, False, True))
    conversation = read_tokenize({"messages": HELLO, "add_generation_prompt": False}, TERMS).conversation
    assert conversation is not None
    assert not conversation.add_generation_prompt
    assert read_detokenize({"tokens": [1, 299]}, TERMS).token_ids == [1, 299]
    assert read_detokenize({"tokens": []}, TERMS).token_ids == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "x" * 2**23}, "prompt"),
        ({"prompt": "x", "messages": HELLO}, "prompt"),
        ({"messages": []}, "messages"),
        ({"prompt": "x", "model": 7}, "model"),
        ({"prompt": "x", "return_token_strs": 1}, "return_token_strs"),
    ],
)
def test_what_tokenize_refuses(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_tokenize(body, TERMS)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("tokens", [None, 7, "1", [-1], [300], [1.5], [True], ["1"], [2**63]])
def test_what_detokenize_refuses(tokens: Any) -> None:
    with pytest.raises(ApiError) as caught:
        read_detokenize({"tokens": tokens}, TERMS)
    assert (caught.value.status, caught.value.param) == (400, "tokens")


def test_replies_to_tokenize() -> None:
    plain = {"count": 2, "max_model_len": 64, "tokens": [97, 0xC3], "token_strs": None}
    assert json.loads(tokenize_body([97, 0xC3], 64)) == plain
    assert json.loads(tokenize_body([97, 0xC3], 64, token_bytes)) == {**plain, "token_strs": ["a", "\ufffd"]}
    assert json.loads(detokenize_body("hé\0")) == {"prompt": "hé\0"}


def test_a_conversation_is_cut_after_its_last_text() -> None:
    rendered = "<user>Hi<|end|><bot>We<|end|>\n"
    ids = [*b"<user>Hi", 256, *b"<bot>We", 256, 10]
    assert cut_after_text(ids, rendered, "We \n", token_bytes) == ids[:-2]


@pytest.mark.parametrize(
    ("rendered", "text", "said"),
    [("<bot>WE<|end|>", "We", "changes"), ("<bot>We", "W", "joins"), ("We", "We", "joins")],
)
def test_a_conversation_that_cannot_be_cut_there_is_refused(rendered: str, text: str, said: str) -> None:
    ids = [] if rendered == "We" else [0, 256]
    with pytest.raises(ApiError, match=said) as caught:
        cut_after_text(ids, rendered, text, token_bytes)
    assert caught.value.param == "continue_final_message"


def test_a_real_template_is_continued() -> None:
    path = Path("../shared/data/tokenizers/qwen3")
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    tokenizer = Tokenizer.from_directory(path)
    messages = [*HELLO, {"role": "assistant", "content": "Well, <|im_end|> I"}]
    ids = tokenizer.encode_chat(messages, add_generation_prompt=False)
    rendered = tokenizer.render_chat(messages, add_generation_prompt=False)
    cut = cut_after_text(ids, rendered, "Well, <|im_end|> I", tokenizer.token_bytes)
    assert tokenizer.decode(cut, skip_special_tokens=False).endswith("Well, <|im_end|> I")
    assert len(cut) == len(ids) - 2
