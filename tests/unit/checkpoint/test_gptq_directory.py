"""Directories with quantized matrices: opened, checked part by part, read through the door and by a runner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvik.checkpoint import DummyCheckpoint, HuggingFaceCheckpoint, open_checkpoint, write_checkpoint
from kvik.checkpoint.checkpoint import Tensor
from kvik.checkpoint.formats.safetensors import SafetensorsFile
from kvik.checkpoint.formats.safetensors_writer import write_safetensors
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.config import RunnerOptions
from kvik.errors import CheckpointError, UnsupportedModelError
from kvik.quantize import QuantizeOptions, quantize
from kvik.runners.reference import ReferenceRunner

Stored = dict[str, tuple[str, Any]]
GATE = "model.layers.0.mlp.gate_proj."


def rewrite(directory: Path, change: Any) -> None:
    """Alter the tensors of model.safetensors: `change` gets type and data by name."""
    path = directory / "model.safetensors"
    file = SafetensorsFile(path)
    stored: Stored = {}
    for name, entry in file.entries.items():
        read = file.integers if entry.dtype[0] == "I" else file.array
        stored[name] = (entry.dtype, np.array(read(name)))
    change(stored)
    entries = {name: (dtype, tuple(data.shape)) for name, (dtype, data) in stored.items()}
    write_safetensors(path, entries, lambda name: stored[name][1])


def set_quantization(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


@pytest.fixture
def gptq(tmp_path: Path) -> Path:
    """tiny-qwen2 (biases, an untied plain head) rounded to nearest in GPTQ's layout."""
    out = tmp_path / "gptq"
    quantize(DummyCheckpoint("tiny-qwen2"), out, QuantizeOptions("rtn", group_size=8, format="gptq"))
    return out


@pytest.mark.parametrize("form", ["gptq", "awq", "compressed"])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_was_rounded_is_read_back(form: str, bits: int, tmp_path: Path) -> None:
    if (form, bits) == ("awq", 8):
        pytest.skip("AWQ has 4 bits")
    source = DummyCheckpoint("tiny-qwen2")
    options = QuantizeOptions("rtn", bits=bits, group_size=24, symmetric=False, format=form)
    quantize(source, tmp_path / "out", options)
    checkpoint = HuggingFaceCheckpoint(tmp_path / "out")
    assert checkpoint.spec == source.spec
    for name, shape in checkpoint.spec.tensor_shapes().items():
        tensor, plain = checkpoint.tensor(name), source.tensor(name)
        checkpoint.release(name)
        assert tensor.shape == shape
        if name.startswith("layers.") and len(shape) == 2:
            assert isinstance(tensor, QuantizedTensor)
            step = tensor.scales.max()
            assert 0 < np.abs(tensor.float32() - plain.float32()).max() <= step
        else:
            assert isinstance(tensor, Tensor)
            np.testing.assert_array_equal(tensor.data, plain.data)


def test_the_reference_runner_takes_quantized_matrices_as_they_are(gptq: Path) -> None:
    """Whatever the option `weights` makes of the others."""
    for weights in ("auto", "int8"):
        runner = ReferenceRunner(RunnerOptions(), weights=weights)
        runner.load(open_checkpoint(str(gptq)))
        assert runner.vocab_size == DummyCheckpoint("tiny-qwen2").spec.vocab_size


def test_a_quantized_model_is_not_written_as_a_plain_one(gptq: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weight layers.0.q is gptq-int4; expected a plain one"):
        write_checkpoint(open_checkpoint(str(gptq)), tmp_path / "plain")


def test_a_matrix_that_is_plain_in_the_file_stays_plain(gptq: Path) -> None:
    plain = DummyCheckpoint("tiny-qwen2").tensor("layers.0.gate").data

    def change(stored: Stored) -> None:
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            del stored[GATE + part]
        stored[GATE + "weight"] = ("BF16", plain)

    rewrite(gptq, change)
    tensor = HuggingFaceCheckpoint(gptq).tensor("layers.0.gate")
    assert isinstance(tensor, Tensor)
    np.testing.assert_array_equal(tensor.data, plain)


def test_a_quantized_head_is_a_head_of_its_own(tmp_path: Path) -> None:
    quantize(DummyCheckpoint("tiny-llama"), tmp_path / "out", QuantizeOptions("rtn", group_size=8, format="gptq"))

    def change(stored: Stored) -> None:
        del stored["lm_head.weight"]
        stored["lm_head.qweight"] = ("I32", np.zeros((8, 304), np.int32))
        stored["lm_head.qzeros"] = ("I32", np.zeros((8, 38), np.int32))
        stored["lm_head.scales"] = ("F16", np.ones((8, 304), np.float16))
        embed = stored["model.embed_tokens.weight"][1]
        stored["model.embed_tokens.weight"] = ("BF16", embed[:304])

    rewrite(tmp_path / "out", change)
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 304, "tie_word_embeddings": True}))
    checkpoint = HuggingFaceCheckpoint(tmp_path / "out")
    assert not checkpoint.spec.tied_head
    assert (checkpoint.tensor("head").float32() == -1).all()


def test_a_bias_of_zeros_that_a_tool_added_is_passed_over_and_any_other_is_not(gptq: Path) -> None:
    rewrite(gptq, lambda stored: stored.update({GATE + "bias": ("F16", np.zeros(168, np.float16))}))
    HuggingFaceCheckpoint(gptq)
    rewrite(gptq, lambda stored: stored.update({GATE + "bias": ("F16", np.ones(168, np.float16))}))
    with pytest.raises(CheckpointError, match=r"gate_proj.bias' has no place"):
        HuggingFaceCheckpoint(gptq)


@pytest.mark.parametrize(
    ("part", "stored", "said"),
    [
        ("qweight", ("I32", np.zeros((12, 160), np.int32)), r"qweight has shape \[12, 160\]; expected \[12, 168\]"),
        ("qzeros", ("I32", np.zeros((1, 21), np.int32)), r"qzeros has shape \[1, 21\]; expected \[12, 21\]"),
        ("scales", ("I32", np.zeros((12, 168), np.int32)), r"scales has dtype I32; expected one of F16, BF16, F32"),
        ("g_idx", ("I64", np.zeros(96, np.int64)), r"g_idx has dtype I64; expected one of I32"),
        ("scales", None, r"'model.layers.0.mlp.gate_proj' is without scales; expected shape \[12, 168\]"),
    ],
)
def test_parts_are_checked_when_a_directory_is_opened(
    gptq: Path, part: str, stored: tuple[str, Any] | None, said: str
) -> None:
    rewrite(gptq, lambda all_: all_.update({GATE + part: stored}) if stored else all_.pop(GATE + part))
    with pytest.raises(CheckpointError, match=said):
        HuggingFaceCheckpoint(gptq)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
def test_an_impossible_scale_is_refused_with_the_name_of_its_matrix(gptq: Path, value: float) -> None:
    def change(stored: Stored) -> None:
        stored[GATE + "scales"][1][3, 5] = value

    rewrite(gptq, change)
    checkpoint = HuggingFaceCheckpoint(gptq)
    with pytest.raises(CheckpointError, match=rf"'model.layers.0.mlp.gate_proj' has the scale {value}"):
        checkpoint.tensor("layers.0.gate")


def test_a_config_that_asks_for_more_is_refused_before_the_weights_are_looked_at(gptq: Path) -> None:
    set_quantization(gptq, bits=3)
    (gptq / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match=r"quantization_config.bits is 3, which is not supported"):
        HuggingFaceCheckpoint(gptq)
    set_quantization(gptq, quant_method="bitsandbytes")
    with pytest.raises(UnsupportedModelError, match=r"quant_method is 'bitsandbytes'.*gptq, awq, compressed-tensors"):
        HuggingFaceCheckpoint(gptq)


def test_a_config_of_another_group_size_than_the_file_is_refused(gptq: Path) -> None:
    set_quantization(gptq, group_size=16)
    with pytest.raises(CheckpointError, match=r"qzeros has shape \[12, 12\]; expected \[6, 12\]"):
        HuggingFaceCheckpoint(gptq)
