"""Tokenizers that went through GGUF metadata: the same ids, text and chats as the files they came from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvik.checkpoint import GgufCheckpoint, box_directory
from kvik.checkpoint.dummy import DUMMIES
from kvik.checkpoint.gguf_vocab import tokenizer_files
from kvik.checkpoint.gguf_vocab_write import read_vocabulary
from kvik.errors import CheckpointError
from kvik.text.described import described_tokenizer
from kvik.text.tokenizer import Tokenizer

DATA = Path("../shared/data")
TEXTS = [
    "",
    " ",
    "Once upon a time, there was a 12-year-old dog.\n\n  Its name:\tRex's\r\n",
    "naïve café é 東京 🙂🙂 ﬁ ½ ٣٤ 3.14159 don't DON'T we'll",
    "a<|im_end|>b <s> </s> <think>x</think> ▁ <0x0A>",
    "    def f(x):\n        return x**2  # comment\n\n\n",
]
MESSAGES = [{"role": "user", "content": "What is 2 + 3? <|im_end|>"}]


def through_gguf(directory: Path, rows: int, eos: tuple[int, ...], pre: str | None = None) -> Tokenizer:
    spec = replace(DUMMIES["tiny-qwen3"], vocab_size=rows, bos_id=None, eos_ids=eos)
    metadata = read_vocabulary(directory, spec, pre)
    plain = {key.removeprefix("tokenizer."): value for key, value in metadata.items()}
    files = tokenizer_files("model.gguf", plain, eos)
    assert files is not None
    return described_tokenizer("model.gguf", files)


@pytest.fixture(scope="module")
def qwen(qwen3_directory: Path) -> Tokenizer:
    return through_gguf(qwen3_directory, 151936, (151645, 151643))


def test_qwen3_encodes_the_published_vectors(qwen: Tokenizer, qwen3: Tokenizer) -> None:
    folder = DATA / "tokenizers" / "vectors"
    texts = (folder / "ggml-vocab-qwen2.gguf.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    lines = (folder / "ggml-vocab-qwen2.gguf.out").read_text().splitlines()
    expected = [[int(token) for token in line.split()] for line in lines]
    assert len(expected) >= 40
    for text, ids in zip(texts, expected, strict=False):
        assert qwen.encode(text) == ids
    for text in TEXTS:
        assert qwen.encode(text) == qwen3.encode(text)


def test_qwen3_chats_are_the_same(qwen: Tokenizer, qwen3: Tokenizer) -> None:
    assert qwen.has_chat_template
    assert qwen.encode_chat(MESSAGES) == qwen3.encode_chat(MESSAGES)
    assert qwen.special_ids == qwen3.special_ids
    assert qwen.vocab_size == qwen3.vocab_size
    assert set(qwen.eos_ids) == set(qwen3.eos_ids)


def test_the_model_in_the_box_reads_and_writes_as_before() -> None:
    ours = through_gguf(box_directory(), 4096, (2, 0), "starcoder")
    theirs = Tokenizer.from_directory(box_directory())
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
    assert ours.encode_chat(MESSAGES) == theirs.encode_chat(MESSAGES)
    assert (ours.eos_ids, ours.bos_id) == (theirs.eos_ids, theirs.bos_id)


@pytest.mark.parametrize("model", ["stories260K", "babyllama-tok361"])
def test_sentence_piece_files_read_and_write_as_the_original(model: str) -> None:
    folder = DATA / "models" / model
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    files = GgufCheckpoint(folder / "gguf" / f"{model}-Q8_0.gguf").tokenizer_files()
    assert files is not None
    ours, theirs = described_tokenizer("model.gguf", files), Tokenizer.from_directory(folder / "hf")
    written = through_gguf(folder / "hf", theirs.vocab_size, (2,))
    for text in [*TEXTS, (DATA / "evaltext" / "tinystories_valid_sample.txt").read_text()[:20_000]]:
        ids = theirs.encode(text)
        assert ours.encode(text) == written.encode(text) == ids
        assert ours.decode(ids) == written.decode(ids) == theirs.decode(ids)
        stream = ours.stream()
        assert stream.push(ids) + stream.finish() == theirs.decode(ids)
    assert (ours.bos_id, ours.eos_ids) == (theirs.bos_id, theirs.eos_ids) == (1, (2,))
    for case in json.loads((folder / "golden.json").read_text())["greedy"]:
        assert ours.encode(case["prompt"]) == case["prompt_ids"]


def described(**changes: Any) -> dict[str, Any]:
    files: dict[str, Any] = {
        "tokenizer": {"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}},
        "tokenizer_config": {},
        "generation_config": {},
        "chat_templates": {},
    }
    return {**files, **changes}


def test_a_description_without_a_template_has_none() -> None:
    tokenizer = described_tokenizer("model.gguf", described())
    assert not tokenizer.has_chat_template
    assert tokenizer.encode("a") == [0]
    templated = described_tokenizer("model.gguf", described(chat_templates={"default": "{{ messages[0].content }}"}))
    assert templated.render_chat([{"role": "user", "content": "hi"}]) == "hi"


@pytest.mark.parametrize(
    "tokenizer",
    [
        {},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
        {"model": {"type": "Nothing"}},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
    ],
)
def test_a_description_that_cannot_be_built_is_refused(tokenizer: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^model\.gguf has a tokenizer that cannot be built"):
        described_tokenizer("model.gguf", described(tokenizer=tokenizer))
