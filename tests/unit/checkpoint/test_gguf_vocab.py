"""Tokenizers in GGUF metadata: read as the files they were made from, and refused by name where that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from kvik.checkpoint.gguf_splits import SPLITS, normalizer_of, pre_tokenizer_of, split_name
from kvik.checkpoint.gguf_vocab import merges_by_score, tokenizer_files
from kvik.errors import CheckpointError, UnsupportedModelError

BYTE_LEVEL = {
    "ggml.model": "gpt2",
    "ggml.pre": "qwen2",
    "ggml.tokens": ["a", "b", "ab", "<end>", "<tool>", "[PAD5]"],
    "ggml.token_type": [1, 1, 1, 3, 4, 5],
    "ggml.merges": ["a b"],
    "ggml.eos_token_id": 3,
    "chat_template": "{{ messages }}",
    "chat_template.tool_use": "{{ tools }}",
}
PIECES = {
    "ggml.model": "llama",
    "ggml.tokens": ["<unk>", "<s>", "</s>", "<0x0A>", "a", "b", "ab", "▁"],
    "ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1],
    "ggml.scores": [0.0, 0.0, 0.0, 0.0, -2.0, -3.0, -1.0, -4.0],
    "ggml.bos_token_id": 1,
    "ggml.eos_token_id": 2,
    "ggml.unknown_token_id": 0,
}


def files(metadata: dict[str, Any], eos: tuple[int, ...] = ()) -> dict[str, Any]:
    found = tokenizer_files("model.gguf", metadata, eos)
    assert found is not None
    return found


def test_byte_level_vocabularies() -> None:
    found = files(BYTE_LEVEL, (3, 4))
    tokenizer = found["tokenizer"]
    assert tokenizer["model"]["vocab"] == {"a": 0, "b": 1, "ab": 2, "<end>": 3, "<tool>": 4}
    assert tokenizer["model"]["merges"] == [("a", "b")]
    assert tokenizer["normalizer"] == {"type": "NFC"}
    added = {token["content"]: (token["id"], token["special"]) for token in tokenizer["added_tokens"]}
    assert added == {"<end>": (3, True), "<tool>": (4, False)}
    assert tokenizer["post_processor"] is None
    assert found["tokenizer_config"] == {"eos_token": "<end>"}
    assert found["generation_config"] == {"bos_token_id": None, "eos_token_id": [3, 4]}
    assert found["chat_templates"] == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}


def test_sentence_piece_vocabularies() -> None:
    tokenizer = files(PIECES)["tokenizer"]
    assert tokenizer["model"]["byte_fallback"] is True
    assert tokenizer["model"]["unk_token"] == "<unk>"
    assert tokenizer["model"]["merges"] == [("a", "b")]
    assert [step["type"] for step in tokenizer["normalizer"]["normalizers"]] == ["Prepend", "Replace"]
    assert tokenizer["post_processor"]["special_tokens"] == {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    bare = files({**PIECES, "ggml.add_space_prefix": False, "ggml.add_bos_token": False})["tokenizer"]
    assert [step["type"] for step in bare["normalizer"]["normalizers"]] == ["Replace"]
    assert bare["post_processor"] is None
    both = files({**PIECES, "ggml.add_eos_token": True})["tokenizer"]["post_processor"]
    assert [next(iter(part)) for part in both["single"]] == ["SpecialToken", "Sequence", "SpecialToken"]


def test_merges_follow_the_scores() -> None:
    tokens, kinds = ["a", "b", "c", "ab", "bc", "abc", "<s>", "s>"], [1, 1, 1, 1, 1, 1, 3, 1]
    merges = merges_by_score(tokens, kinds, [0.0, 0, 0, -2, -1, -3, 0, 0])
    assert merges == [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]


def test_a_file_that_brings_its_tokenizer_json_is_believed() -> None:
    given = '{"model": {"type": "BPE"}, "added_tokens": []}'
    found = files({**BYTE_LEVEL, "huggingface.json": given, "ggml.pre": "whatever"})
    assert found["tokenizer"] == {"model": {"type": "BPE"}, "added_tokens": []}
    assert found["tokenizer_config"] == {"eos_token": "<end>"}
    with pytest.raises(CheckpointError, match=r"tokenizer\.huggingface\.json is not valid JSON"):
        files({**BYTE_LEVEL, "huggingface.json": "{"})


@pytest.mark.parametrize("model", ["none", "no_vocab", None])
def test_no_tokenizer_is_no_error(model: str | None) -> None:
    assert tokenizer_files("model.gguf", {"ggml.model": model}, ()) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml.model": "bert"}, r"tokenizer\.ggml\.model is 'bert'.*supported: gpt2, llama"),
        ({"ggml.pre": "deepseek-llm"}, r"tokenizer\.ggml\.pre is 'deepseek-llm'.*supported: qwen2, "),
        ({"ggml.add_space_prefix": True}, r"tokenizer\.ggml\.add_space_prefix is True"),
        ({"ggml.remove_extra_whitespaces": True}, r"tokenizer\.ggml\.remove_extra_whitespaces is True"),
        ({"ggml.precompiled_charsmap": [1]}, r"tokenizer\.ggml\.precompiled_charsmap is \[1\]"),
    ],
)
def test_what_is_not_done_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        files({**BYTE_LEVEL, **changes})


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (BYTE_LEVEL, {"ggml.tokens": None}, "tokens is None; expected a list of strings"),
        (BYTE_LEVEL, {"ggml.tokens": ["a", "b", "a", "c", "d", "e"]}, "tokens has 'a' twice"),
        (BYTE_LEVEL, {"ggml.token_type": [1, 1]}, "token_type is .* one entry for each token"),
        (BYTE_LEVEL, {"ggml.merges": None}, "merges is None; expected a list of strings"),
        (BYTE_LEVEL, {"ggml.merges": ["a c"]}, "merges has 'a c'; expected two tokens whose union is one"),
        (BYTE_LEVEL, {"ggml.merges": ["ab"]}, "merges has 'ab'; expected two tokens"),
        (BYTE_LEVEL, {"ggml.eos_token_id": 6}, "eos_token_id is 6; expected a whole number from 0 to 5"),
        (BYTE_LEVEL, {"ggml.add_bos_token": "yes"}, "add_bos_token is 'yes'; expected true or false"),
        (BYTE_LEVEL, {"chat_template": 7}, "chat_template is 7; expected a template"),
        (PIECES, {"ggml.scores": [1.0]}, "scores is .* one entry for each token"),
        (PIECES, {"ggml.scores": [float("nan")] * 8}, "scores is .* one entry for each token"),
        (
            PIECES,
            {"ggml.tokens": [*PIECES["ggml.tokens"][:7], "x" * 2000]},
            "tokens has one of 2000 characters; supported: up to 1024",
        ),  # type: ignore[index]
    ],
)
def test_vocabularies_that_contradict_themselves_are_refused(
    base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        files({**base, **changes})


@pytest.mark.parametrize("name", SPLITS)
def test_every_rule_is_known_again_by_what_it_does(name: str) -> None:
    split = SPLITS[name]
    described = {
        "normalizer": normalizer_of(split),
        "pre_tokenizer": pre_tokenizer_of(split),
        "model": {"ignore_merges": split.ignore_merges},
    }
    found = split_name(described)
    assert found is not None
    same = SPLITS[found]
    assert (same.patterns, same.nfc, same.ignore_merges) == (split.patterns, split.nfc, split.ignore_merges)


def test_other_spellings_of_a_rule_are_known_and_other_rules_are_not() -> None:
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    assert split_name({"pre_tokenizer": plain, "model": {}}) == "gpt-2"
    digits = {"type": "Digits", "individual_digits": True}
    both = {"type": "Sequence", "pretokenizers": [digits, plain]}
    assert split_name({"pre_tokenizer": both, "model": {}}) == "starcoder"
    assert split_name({"pre_tokenizer": {**plain, "add_prefix_space": True}, "model": {}}) is None
    assert split_name({"pre_tokenizer": plain, "normalizer": {"type": "Lowercase"}, "model": {}}) is None
    assert split_name({"pre_tokenizer": None, "model": {}}) is None
    assert split_name({"pre_tokenizer": digits, "model": {}}) is None
