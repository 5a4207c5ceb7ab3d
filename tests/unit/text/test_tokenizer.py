"""Encoding, decoding and the special ids that a checkpoint's files name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as RawTokenizer

from kvik.errors import CheckpointError, InvalidRequestError
from kvik.text.tokenizer import Tokenizer

VECTORS = Path("../shared/data/tokenizers/vectors")
Write = Callable[..., Path]
MakeRaw = Callable[[list[AddedToken]], RawTokenizer]


def test_vectors_of_the_qwen_byte_pairs(qwen3: Tokenizer) -> None:
    if not VECTORS.is_dir():
        pytest.skip(f"{VECTORS} is not here")
    inputs = (VECTORS / "ggml-vocab-qwen2.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    outputs = (VECTORS / "ggml-vocab-qwen2.gguf.out").read_text().splitlines()
    assert len(inputs) == len(outputs) + 1
    assert inputs[-1] == ""
    for text, line in zip(inputs, outputs, strict=False):
        assert qwen3.encode(text) == [int(token_id) for token_id in line.split()], text


def test_golden_prompts_and_texts(llama: tuple[Tokenizer, dict[str, Any]]) -> None:
    tokenizer, golden = llama
    for case in golden["greedy"]:
        if case["prompt"]:
            assert tokenizer.encode(case["prompt"]) == case["prompt_ids"]
        assert tokenizer.decode(case["prompt_ids"] + case["greedy_ids"]) == case["text"]
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))


def test_qwen3_ids_and_sizes(qwen3: Tokenizer) -> None:
    assert qwen3.vocab_size == 151669
    assert qwen3.eos_ids == (151645, 151643)
    assert qwen3.bos_id == 151643
    assert qwen3.has_chat_template


@pytest.mark.parametrize("text", ["<|im_start|>", "a<|im_end|>b", "<|endoftext|><|endoftext|>", " <|vision_pad|> "])
def test_special_tokens_spelled_in_a_text_stay_plain(qwen3: Tokenizer, text: str) -> None:
    ids = qwen3.encode(text)
    assert max(ids) < 151643
    assert qwen3.decode(ids) == text


def test_added_tokens_that_are_not_special_are_recognized(qwen3: Tokenizer) -> None:
    assert qwen3.encode("<think>") == [151667]


def test_post_processor_adds_bos_only_when_asked(write_tokenizer: Write, make_byte_level: MakeRaw) -> None:
    raw = make_byte_level([AddedToken("<s>", special=True, normalized=True)])
    raw.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    tokenizer = Tokenizer.from_directory(write_tokenizer(raw))
    assert tokenizer.encode("<s>")[0] == 256
    assert 256 not in tokenizer.encode("<s>")[1:]
    assert tokenizer.encode("<s>", add_special_tokens=False) == tokenizer.encode("<s>")[1:]


def test_truncation_and_padding_of_the_file_are_ignored(write_tokenizer: Write, make_byte_level: MakeRaw) -> None:
    raw = make_byte_level([])
    raw.enable_truncation(4)
    raw.enable_padding(length=16)
    assert len(Tokenizer.from_directory(write_tokenizer(raw)).encode("six or so")) == 9


def test_eos_ids_are_the_union_in_order(write_tokenizer: Write) -> None:
    path = write_tokenizer(
        generation_config={"eos_token_id": [258, 257]},
        tokenizer_config={"eos_token": {"content": "<s>"}},
        config={"eos_token_id": 257, "bos_token_id": 9},
    )
    tokenizer = Tokenizer.from_directory(path)
    assert tokenizer.eos_ids == (258, 257, 256)
    assert tokenizer.bos_id == 9


def test_special_tokens_map_is_the_fallback_of_tokenizer_config(write_tokenizer: Write) -> None:
    names = {"eos_token": "</s>", "bos_token": "</s>"}
    tokenizer = Tokenizer.from_directory(
        write_tokenizer(special_tokens_map=names, tokenizer_config={"bos_token": "<s>", "eos_token": None})
    )
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (256, (257,))
    assert not tokenizer.has_chat_template


def test_ids_outside_the_vocabulary_add_nothing(qwen3: Tokenizer) -> None:
    assert qwen3.decode([151900, 9707]) == "Hello"
    assert qwen3.token_text(151900) == ""


@pytest.mark.parametrize("ids", [[-1], [2**40], ["a"]])
def test_what_is_no_token_id_is_refused(qwen3: Tokenizer, ids: list[Any]) -> None:
    with pytest.raises(InvalidRequestError, match="token ids"):
        qwen3.decode(ids)


@pytest.mark.parametrize("text", ["\ud800", 3, None])
def test_what_is_no_text_is_refused(qwen3: Tokenizer, text: Any) -> None:
    with pytest.raises(InvalidRequestError, match="expected Unicode text"):
        qwen3.encode(text)


def test_token_text_and_bytes(qwen3: Tokenizer, llama: tuple[Tokenizer, dict[str, Any]]) -> None:
    [first, *_] = qwen3.encode("🦙")
    assert "🦙".encode().startswith(qwen3.token_bytes(first).lstrip())
    assert qwen3.token_text(151645) == "<|im_end|>"
    small = llama[0]
    assert small.token_bytes(small.encode("\n")[-1]) == b"\n"
    assert small.token_text(small.encode("a b", add_special_tokens=False)[0])[:1] == " "


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b"\xff", b'{"version": "1.0", "model": {"type": "BPE"}}'])
def test_corrupt_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map", "generation_config", "config"])
@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b'{"a":' * 100_000])
def test_corrupt_side_file_is_named(write_tokenizer: Write, name: str, content: bytes) -> None:
    path = write_tokenizer()
    (path / f"{name}.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}\.json"):
        Tokenizer.from_directory(path)


@pytest.mark.parametrize("value", ["2", [1.5], [True], -1, {"a": 1}])
def test_eos_that_is_no_id_is_named(write_tokenizer: Write, value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json has eos_token_id"):
        Tokenizer.from_directory(write_tokenizer(config={"eos_token_id": value}))


@pytest.mark.parametrize("template", [5, {}, [{"name": "x"}], ["a"], [{"name": 1, "template": "a"}]])
def test_chat_template_of_a_wrong_kind_is_refused(write_tokenizer: Write, template: Any) -> None:
    with pytest.raises(CheckpointError, match="chat_template"):
        Tokenizer.from_directory(write_tokenizer(tokenizer_config={"chat_template": template}))


def test_chat_template_files_come_before_the_config(write_tokenizer: Write) -> None:
    path = write_tokenizer(tokenizer_config={"chat_template": "config"})
    assert Tokenizer.from_directory(path).render_chat([]) == "config"
    (path / "chat_template.jinja").write_text("file")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    tokenizer = Tokenizer.from_directory(path)
    assert tokenizer.render_chat([]) == "file"
    assert tokenizer.render_chat([], tools=[{"name": "f"}]) == "tools"


def test_empty_template_list_is_no_template(write_tokenizer: Write) -> None:
    path = write_tokenizer(tokenizer_config=json.loads('{"chat_template": []}'))
    assert not Tokenizer.from_directory(path).has_chat_template
