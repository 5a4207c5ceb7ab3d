"""Written checkpoints: what other programs would trip over, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvik.checkpoint import DecoderSpec, DummyCheckpoint, Tensor, open_checkpoint, write_checkpoint, write_gguf
from kvik.checkpoint.dummy import DUMMIES
from kvik.errors import CheckpointError


def test_data_begins_on_eight_bytes(tmp_path: Path) -> None:
    for layers in range(1, 5):
        spec = replace(DUMMIES["tiny-qwen3"], num_layers=layers)
        write_checkpoint(DummyCheckpoint.from_spec(spec), tmp_path / str(layers))
        head = (tmp_path / str(layers) / "model.safetensors").read_bytes()[:8]
        assert int.from_bytes(head, "little") % 8 == 0


def test_shards_hold_at_most_what_was_asked_and_the_index_names_every_tensor(tmp_path: Path) -> None:
    checkpoint = DummyCheckpoint("tiny-llama")
    write_checkpoint(checkpoint, tmp_path, max_shard_bytes=50_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in tmp_path.glob("*.safetensors")}
    assert len(index["weight_map"]) == len(checkpoint.spec.tensor_shapes())
    assert index["metadata"]["total_size"] == 2 * checkpoint.spec.num_parameters()
    for path in tmp_path.glob("*.safetensors"):
        data = path.read_bytes()
        assert len(data) - 8 - int.from_bytes(data[:8], "little") <= 50_000


def test_a_model_that_is_there_already_is_not_overwritten(tmp_path: Path) -> None:
    write_checkpoint(DummyCheckpoint("tiny-llama"), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"holds a config.json already"):
        write_checkpoint(DummyCheckpoint("tiny-qwen3"), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_checkpoint(DummyCheckpoint("tiny-llama"), tmp_path / "file" / "model")


class Liar(DummyCheckpoint):
    """A checkpoint whose tensors are not those of its spec."""

    def tensor(self, name: str) -> Tensor:
        tensor = super().tensor(name)
        return replace(tensor, data=tensor.data[:-1])


def test_tensors_that_contradict_the_spec_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weight embed is bf16 \[306, 64\]; expected bf16 \[307, 64\]"):
        write_checkpoint(Liar("tiny-qwen3"), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_quantized_weights_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", DummyCheckpoint("tiny-qwen2"), "Q8_0")
    with pytest.raises(CheckpointError, match=r"m\.gguf: weight embed is Q8_0; expected a plain one"):
        write_checkpoint(open_checkpoint(str(tmp_path / "m.gguf")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_windows_that_are_all_zero_are_no_windows(tmp_path: Path) -> None:
    spec: DecoderSpec = replace(DUMMIES["tiny-qwen3"], sliding_window=(0, 0))
    write_checkpoint(DummyCheckpoint.from_spec(spec), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["use_sliding_window"] is False
