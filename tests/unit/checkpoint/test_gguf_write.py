"""Writing GGUF files: another reader finds the same values, types are those asked for, and nothing half is left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvik.checkpoint import DummyCheckpoint, GgufCheckpoint, HuggingFaceCheckpoint, box_directory, write_checkpoint
from kvik.checkpoint.dummy import DUMMIES
from kvik.checkpoint.formats.gguf.file import GgufFile
from kvik.checkpoint.formats.gguf.layouts import BY_NAME
from kvik.checkpoint.formats.gguf.writer import Planned, write_file
from kvik.checkpoint.gguf_names import gguf_name
from kvik.checkpoint.gguf_vocab_write import read_vocabulary
from kvik.checkpoint.gguf_write import KINDS, type_of, write_gguf
from kvik.errors import CheckpointError, UnsupportedModelError

SPEC = replace(DUMMIES["tiny-qwen3"], hidden_size=256, intermediate_size=512, num_layers=8, vocab_size=64)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize("kind", KINDS)
def test_another_reader_finds_the_same_values(kind: str, tmp_path: Path) -> None:
    library = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    write_gguf(path, DummyCheckpoint.from_spec(SPEC), kind)
    ours, theirs = GgufCheckpoint(path), library.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in theirs.tensors}
    assert theirs.fields["general.file_type"].contents() == KINDS[kind]
    for name, shape in SPEC.tensor_shapes().items():
        tensor = tensors[gguf_name(name)]
        values = library.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        np.testing.assert_array_equal(ours.tensor(name).float32(), values)


@pytest.mark.parametrize(("kind", "most"), [("Q8_0", 0.006), ("Q4_0", 0.083), ("Q4_K_M", 0.073)])
def test_what_is_lost_is_what_the_type_loses(kind: str, most: float, tmp_path: Path) -> None:
    dummy = DummyCheckpoint.from_spec(SPEC)
    write_gguf(tmp_path / "model.gguf", dummy, kind)
    opened, wrong, whole = GgufCheckpoint(tmp_path / "model.gguf"), 0.0, 0.0
    for name in SPEC.tensor_shapes():
        values = dummy.tensor(name).float32()
        wrong += float(((values - opened.tensor(name).float32()) ** 2).sum())
        whole += float((values**2).sum()) if values.ndim == 2 else 0.0
    assert (wrong / whole) ** 0.5 < most


def test_the_mix_gives_six_bits_to_what_most_needs_them() -> None:
    def kinds(spec: Any, part: str) -> str:
        names = [name for name in spec.tensor_shapes() if name.split(".")[-1] == part]
        return " ".join(type_of(name, spec.tensor_shapes()[name], "Q4_K_M", spec).name for name in names)

    assert kinds(SPEC, "v") == kinds(SPEC, "down") == "Q6_K Q4_K Q4_K Q6_K Q4_K Q4_K Q6_K Q6_K"
    assert kinds(SPEC, "gate") == " ".join(["Q4_K"] * 8)
    assert (kinds(SPEC, "embed"), kinds(SPEC, "attn_norm")) == ("Q6_K", " ".join(["F32"] * 8))
    untied = replace(SPEC, tied_head=False)
    assert (kinds(untied, "embed"), kinds(untied, "head")) == ("Q4_K", "Q6_K")


def test_rows_that_are_no_blocks_take_a_finer_type() -> None:
    def kind(inputs: int, asked: str) -> str:
        return type_of("layers.0.o", (8, inputs), asked, SPEC).name

    assert [kind(inputs, "Q4_K_M") for inputs in (256, 96, 40)] == ["Q4_K", "Q8_0", "F16"]
    assert [kind(inputs, "Q4_0") for inputs in (96, 40)] == ["Q4_0", "F16"]


def test_the_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path, seen = tmp_path / "model.gguf", []
    path.write_bytes(b"the old one")

    def make() -> Iterator[NDArray[np.float32]]:
        seen.append((path.read_bytes(), sorted(os.listdir(tmp_path))))
        yield np.zeros(4, np.float32)

    write_file(path, {}, [Planned("t", BY_NAME["F32"], (4,), make)])
    assert seen[0][0] == b"the old one"
    assert len(seen[0][1]) == 2
    assert os.listdir(tmp_path) == ["model.gguf"]
    assert GgufFile(path).blocks("t").tolist() == [0, 0, 0, 0]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"the old one")
    bad = DummyCheckpoint.from_spec(replace(SPEC, dtype="f32"))
    bad.tensor = lambda name: replace(  # type: ignore[method-assign]
        DummyCheckpoint.tensor(bad, name), data=np.full(SPEC.tensor_shapes()[name], np.nan, np.float32)
    )
    with pytest.raises(CheckpointError, match="weight embed holds NaN or infinity"):
        write_gguf(path, bad, "Q8_0")
    short = Planned("t", BY_NAME["F32"], (4,), lambda: [np.zeros(3, np.float32)])
    with pytest.raises(CheckpointError, match="tensor t came to 12 bytes; expected 16"):
        write_file(path, {}, [short])
    assert path.read_bytes() == b"the old one"
    assert os.listdir(tmp_path) == ["model.gguf"]
    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        write_file(tmp_path / "nowhere" / "model.gguf", {}, [])


def test_metadata_of_no_type_are_refused(tmp_path: Path) -> None:
    for value, message in ((None, "is a NoneType"), ([1, "a"], "is a list of several types")):
        with pytest.raises(CheckpointError, match=f"metadata key {message}"):
            write_file(tmp_path / "model.gguf", {"key": value}, [])


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="kind is 'Q3_K'; expected one of F32, F16"):
        write_gguf(tmp_path / "model.gguf", DummyCheckpoint("tiny-qwen3"), "Q3_K")


def test_the_model_in_the_box_keeps_its_tokenizer(tmp_path: Path) -> None:
    """Its rule of cutting has no name in GGUF, so the nearest must be given, and its own goes along."""
    box = HuggingFaceCheckpoint(box_directory())
    path = tmp_path / "box.gguf"
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json cuts texts in a way that GGUF has no name for"):
        write_gguf(path, box, "Q8_0")
    write_gguf(path, box, "Q8_0", pre="starcoder")
    opened = GgufCheckpoint(path)
    files = opened.tokenizer_files()
    assert files is not None
    assert files["tokenizer"] == json.loads((box_directory() / "tokenizer.json").read_text())
    assert files["chat_templates"].keys() == {"default"}
    assert set(opened.spec.eos_ids) == set(box.spec.eos_ids)
    assert opened.spec == replace(box.spec, eos_ids=opened.spec.eos_ids)


def directory(tmp_path: Path, changes: dict[str, Any] | None = None, **files: Any) -> Path:
    """A tiny model with a byte-level tokenizer of six tokens."""
    write_checkpoint(DummyCheckpoint.from_spec(SPEC), tmp_path)
    described = {
        "added_tokens": [{"id": 3, "content": "<s>", "special": True}, {"id": 4, "content": "<x>", "special": False}],
        "pre_tokenizer": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        **(changes or {}),
    }
    for name, content in {"tokenizer": described, **files}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_a_vocabulary_as_it_is_written(tmp_path: Path) -> None:
    config = {"eos_token": {"content": "<s>"}, "chat_template": [{"name": "default", "template": "T"}]}
    found = read_vocabulary(directory(tmp_path, tokenizer_config=config), SPEC)
    assert found["tokenizer.ggml.tokens"][:6] == ["a", "b", "ab", "<s>", "<x>", "[PAD5]"]
    assert found["tokenizer.ggml.token_type"][:6] == [1, 1, 1, 3, 4, 5]
    assert len(found["tokenizer.ggml.tokens"]) == SPEC.vocab_size
    assert found["tokenizer.ggml.merges"] == ["a b"]
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == "T"
    assert "tokenizer.huggingface.json" not in found
    (tmp_path / "chat_template.jinja").write_text("of its own")
    assert read_vocabulary(tmp_path, SPEC)["tokenizer.chat_template"] == "of its own"


def test_end_tokens_beyond_the_first_are_not_lost(tmp_path: Path) -> None:
    path = directory(tmp_path)
    found = read_vocabulary(path, replace(SPEC, eos_ids=(3, 1, 2)))
    ids = [found[f"tokenizer.ggml.{role}_token_id"] for role in ("eos", "eot", "eom")]
    assert ids == [3, 1, 2]
    with pytest.raises(UnsupportedModelError, match="supported in GGUF: three"):
        read_vocabulary(path, replace(SPEC, eos_ids=(3, 0, 1, 2)))


@pytest.mark.parametrize(
    ("changes", "pre", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, None, "model is no BPE"),
        ({"added_tokens": [{"id": 64, "content": "x"}]}, None, "has token id 64; expected 0 to 63"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, None, "has no name for"),
        ({"added_tokens": [{"id": 3}]}, None, "is no tokenizer as the tokenizers library writes them: KeyError"),
        (
            {"model": {"type": "BPE", "vocab": {"a": "b"}}},
            None,
            "is no tokenizer as the tokenizers library writes them",
        ),
        ({}, "unheard-of", "pre is 'unheard-of'; expected one of qwen2"),
    ],
)
def test_tokenizers_that_gguf_cannot_say_are_refused(
    changes: dict[str, Any], pre: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(directory(tmp_path, changes), SPEC, pre)


def around(*parts: str) -> dict[str, Any]:
    """A post_processor that puts tokens around a text, A."""
    single = [{"Sequence": {"id": "A"}} if part == "A" else {"SpecialToken": {"id": part}} for part in parts]
    return {"post_processor": {"type": "Sequence", "processors": [{"type": "TemplateProcessing", "single": single}]}}


@pytest.mark.parametrize(
    ("parts", "bos", "eos", "whole"),
    [
        ((), False, False, True),
        (("A",), False, False, True),
        (("<s>", "A"), True, False, True),
        (("<s>", "A", "<s>"), True, True, True),
        (("<s>", "<x>", "A"), True, False, False),
        (("A", "<x>"), False, True, False),
    ],
)
def test_tokens_around_every_text(parts: tuple[str, ...], bos: bool, eos: bool, whole: bool, tmp_path: Path) -> None:
    """Where `eos_ids` is 3, which is <s>, another token behind a text cannot be said in metadata alone."""
    changes = around(*parts) if parts else {}
    found = read_vocabulary(directory(tmp_path, changes), replace(SPEC, eos_ids=(3,), bos_id=None))
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (bos, eos)
    assert found.get("tokenizer.ggml.bos_token_id") == (3 if bos else None)
    assert ("tokenizer.huggingface.json" not in found) == whole


def test_tokens_that_reach_around_themselves_bring_their_json(tmp_path: Path) -> None:
    added = [{"id": 3, "content": "<s>", "special": True, "lstrip": True}]
    assert "tokenizer.huggingface.json" in read_vocabulary(directory(tmp_path, {"added_tokens": added}), SPEC)
