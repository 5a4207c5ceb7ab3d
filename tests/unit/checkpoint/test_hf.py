"""Directories in Hugging Face layout: what opens, what is refused, and which error names what."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvik.checkpoint import DummyCheckpoint, HuggingFaceCheckpoint, open_checkpoint, write_checkpoint
from kvik.checkpoint.dummy import DUMMIES
from kvik.errors import CheckpointError, UnsupportedModelError

MODELS = Path("../shared/data/models")
Edit = Callable[[dict[str, Any], dict[str, bytes]], None]


def edit(directory: Path, change: Edit) -> None:
    """Rewrite model.safetensors after `change` has altered its header entries and tensor bytes; offsets are redone."""
    path = directory / "model.safetensors"
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    spans = {name: info["data_offsets"] for name, info in header.items()}
    payload = {name: data[begin + span[0] : begin + span[1]] for name, span in spans.items()}
    change(header, payload)
    at = 0
    for name, info in header.items():
        info["data_offsets"] = [at, at + len(payload[name])]
        at += len(payload[name])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(payload[name] for name in header))


def set_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A written tiny-llama: untied, three layers."""
    write_checkpoint(DummyCheckpoint("tiny-llama"), tmp_path)
    return tmp_path


@pytest.fixture
def qwen3(tmp_path: Path) -> Path:
    """A written tiny-qwen3: tied, two layers."""
    write_checkpoint(DummyCheckpoint("tiny-qwen3"), tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok361"])
def test_real_models_open(name: str) -> None:
    directory = MODELS / name / "hf"
    if not directory.is_dir():
        pytest.skip(f"{directory} is not here")
    checkpoint = open_checkpoint(str(directory))
    assert (checkpoint.spec.family, checkpoint.spec.dtype, checkpoint.spec.tied_head) == ("llama", "f32", True)
    for tensor, shape in checkpoint.spec.tensor_shapes().items():
        values = checkpoint.tensor(tensor).float32()
        assert values.shape == shape
        assert np.isfinite(values).all()
        assert values.std() > 0
        checkpoint.release(tensor)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-qwen2", "tiny-llama", "tiny-mistral"])
def test_what_was_written_is_read_bit_for_bit(name: str, dtype: str, tmp_path: Path) -> None:
    dummy = DummyCheckpoint.from_spec(replace(DUMMIES[name], dtype=dtype), seed=3)
    write_checkpoint(dummy, tmp_path)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert checkpoint.spec == dummy.spec
    assert (checkpoint.directory, checkpoint.name) == (tmp_path, str(tmp_path))
    for tensor in dummy.spec.tensor_shapes():
        stored, made = checkpoint.tensor(tensor), dummy.tensor(tensor)
        assert (stored.name, stored.dtype, stored.data.dtype) == (tensor, dtype, made.data.dtype)
        np.testing.assert_array_equal(stored.data, made.data)


def test_sharded_weights_are_read_bit_for_bit(tmp_path: Path) -> None:
    dummy = DummyCheckpoint("tiny-llama")
    write_checkpoint(dummy, tmp_path, max_shard_bytes=40_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for tensor in dummy.spec.tensor_shapes():
        np.testing.assert_array_equal(checkpoint.tensor(tensor).data, dummy.tensor(tensor).data)


def test_the_stored_form_counts_and_not_what_the_config_says(llama: Path) -> None:
    set_config(llama, torch_dtype="float32")
    assert HuggingFaceCheckpoint(llama).spec.dtype == "bf16"


def test_end_tokens_of_the_generation_config_are_added(llama: Path) -> None:
    (llama / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert HuggingFaceCheckpoint(llama).spec.eos_ids == (2, 7)
    (llama / "generation_config.json").write_text('{"eos_token_id": 100000}')
    with pytest.raises(CheckpointError, match=r"generation_config.json: eos_token_id is 100000"):
        HuggingFaceCheckpoint(llama)


def test_a_missing_tensor_is_named_with_its_shape(llama: Path) -> None:
    edit(llama, lambda header, _: header.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.up_proj.weight is missing; expected shape \[168, 64\]"):
        HuggingFaceCheckpoint(llama)


def test_a_missing_untied_head_says_what_asked_for_it(qwen3: Path) -> None:
    set_config(qwen3, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lm_head.weight is missing.*tie_word_embeddings is false"):
        HuggingFaceCheckpoint(qwen3)


def test_a_wrong_shape_names_both_shapes(llama: Path) -> None:
    edit(llama, lambda header, _: header["model.norm.weight"].update(shape=[8, 8]))
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: tensor model.norm.weight has shape \[8, 8\]; expected \[64\]"
    ):
        HuggingFaceCheckpoint(llama)


def test_a_transposed_matrix_is_refused(llama: Path) -> None:
    edit(llama, lambda header, _: header["model.layers.0.mlp.up_proj.weight"]["shape"].reverse())
    with pytest.raises(CheckpointError, match=r"up_proj.weight has shape \[64, 168\]; expected \[168, 64\]"):
        HuggingFaceCheckpoint(llama)


def test_mixed_forms_are_refused(llama: Path) -> None:
    edit(llama, lambda header, _: header["model.norm.weight"].update(dtype="F16"))
    with pytest.raises(CheckpointError, match=r"model.norm.weight has dtype F16; expected BF16"):
        HuggingFaceCheckpoint(llama)


def test_forms_that_cannot_be_computed_with_are_refused(llama: Path) -> None:
    edit(llama, lambda header, _: [info.update(dtype="I16") for info in header.values()])
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight has dtype I16; expected one of BF16, F16, F32"):
        HuggingFaceCheckpoint(llama)


def add(name: str, like: str) -> Edit:
    def change(header: dict[str, Any], payload: dict[str, bytes]) -> None:
        header[name], payload[name] = dict(header[like]), payload[like]

    return change


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_norm.weight", "model.layers.3.input_layernorm.weight", "adapter.lora_A"]
)
def test_a_tensor_without_a_place_is_refused(name: str, llama: Path) -> None:
    edit(llama, add(name, "model.norm.weight"))
    with pytest.raises(CheckpointError, match=f"tensor '{name}' has no place in a LlamaForCausalLM"):
        HuggingFaceCheckpoint(llama)


def test_tables_of_old_checkpoints_are_passed_over(llama: Path) -> None:
    edit(llama, add("model.layers.0.self_attn.rotary_emb.inv_freq", "model.norm.weight"))
    edit(llama, add("model.rotary_emb.inv_freq", "model.norm.weight"))
    assert HuggingFaceCheckpoint(llama).spec == DUMMIES["tiny-llama"]


def test_a_tied_head_stored_once_more_is_passed_over(qwen3: Path) -> None:
    edit(qwen3, add("lm_head.weight", "model.embed_tokens.weight"))
    checkpoint = HuggingFaceCheckpoint(qwen3)
    assert checkpoint.spec.tied_head
    with pytest.raises(CheckpointError, match="no weight named 'head'"):
        checkpoint.tensor("head")


def test_a_head_that_differs_from_the_embedding_is_the_head(qwen3: Path) -> None:
    def change(header: dict[str, Any], payload: dict[str, bytes]) -> None:
        add("lm_head.weight", "model.embed_tokens.weight")(header, payload)
        payload["lm_head.weight"] = payload["lm_head.weight"][:-2] + b"\1\2"

    edit(qwen3, change)
    checkpoint = HuggingFaceCheckpoint(qwen3)
    assert not checkpoint.spec.tied_head
    assert checkpoint.tensor("head").data[-1, -1] == 0x0201


@pytest.mark.parametrize(
    "name", ["", "nonsense", "layers.9.q", "layers.0.nonsense", "a.b.c", "lm_head.weight", "head "]
)
def test_an_unknown_weight_is_an_error(name: str, llama: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(llama)
    with pytest.raises(CheckpointError, match="has no weight named"):
        checkpoint.tensor(name)
    with pytest.raises(CheckpointError, match="has no weight named"):
        checkpoint.release(name)


def test_an_unsupported_model_is_refused_before_its_weights_are_looked_at(llama: Path) -> None:
    (llama / "model.safetensors").write_bytes(b"rubbish")
    set_config(llama, quantization_config={"bits": 4})
    with pytest.raises(UnsupportedModelError, match="quantization_config"):
        HuggingFaceCheckpoint(llama)


def test_a_truncated_file_is_refused(llama: Path) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor .* ends at byte .*, but the file ends after"):
        HuggingFaceCheckpoint(llama)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "expected an object"),
        ("{", "not valid JSON"),
        ('{"a": 1, "a": 2}', "key 'a' appears twice"),
        ('{"a": 1' + "0" * 30 + "}", "a number of 31 digits"),
        ("\udcff", "not valid JSON"),
        ("{}", "model_type is None"),
    ],
)
def test_a_config_that_is_no_config_is_refused(text: str, message: str, llama: Path) -> None:
    (llama / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=message) as caught:
        HuggingFaceCheckpoint(llama)
    assert "config.json" in str(caught.value)


def test_a_directory_without_config_and_no_directory_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: no such file"):
        HuggingFaceCheckpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        HuggingFaceCheckpoint(tmp_path / "missing")


def test_a_weight_taken_twice_is_the_same_memory(llama: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(llama)
    assert np.shares_memory(checkpoint.tensor("embed").data, checkpoint.tensor("embed").data)
