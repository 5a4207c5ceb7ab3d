"""Many files and their index: complete, unambiguous, and never outside the directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvik.checkpoint.formats.shards import open_weights
from kvik.errors import CheckpointError


def shard(path: Path, **tensors: float) -> None:
    header = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * at, 4 * at + 4]} for at, name in enumerate(tensors)
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + np.array(list(tensors.values()), "<f4").tobytes())


def index(directory: Path, weight_map: Any) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(text)


def test_tensors_are_found_in_whichever_file_holds_them(tmp_path: Path) -> None:
    shard(tmp_path / "one.safetensors", a=1, b=2)
    shard(tmp_path / "two.safetensors", c=3)
    index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    weights = open_weights(tmp_path)
    assert [float(weights.array(name)[0]) for name in "abc"] == [1, 2, 3]
    assert weights.path("c").name == "two.safetensors"
    assert "d" not in weights


def test_a_single_file_goes_before_an_index(tmp_path: Path) -> None:
    shard(tmp_path / "model.safetensors", a=1)
    index(tmp_path, {"a": "missing.safetensors"})
    assert open_weights(tmp_path).names() == ["a"]


def test_a_tensor_the_index_forgot_is_still_seen(tmp_path: Path) -> None:
    shard(tmp_path / "one.safetensors", a=1, forgotten=2)
    index(tmp_path, {"a": "one.safetensors"})
    assert "forgotten" in open_weights(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "..\\one.safetensors"),
        *("C:one.safetensors", "..", "", ".safetensors", "one.bin", "one\0.safetensors", 3, None, ["one.safetensors"]),
    ],
)
def test_file_names_that_could_lead_elsewhere_are_refused(name: object, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    (directory / "sub").mkdir(parents=True)
    for place in (tmp_path, directory, directory / "sub"):
        shard(place / "one.safetensors", a=1)
    index(directory, {"a": name})
    with pytest.raises(CheckpointError, match=r"tensor 'a' is in .*; expected the name of a .safetensors file"):
        open_weights(directory)


def test_a_missing_shard_names_the_tensor_that_needs_it(tmp_path: Path) -> None:
    index(tmp_path, {"a": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"one.safetensors: no such file .* for tensor 'a'"):
        open_weights(tmp_path)


def test_a_tensor_missing_in_its_shard_is_named(tmp_path: Path) -> None:
    shard(tmp_path / "one.safetensors", a=1)
    index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"one.safetensors: no tensor 'b'"):
        open_weights(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shard(tmp_path / "one.safetensors", a=1, b=1)
    shard(tmp_path / "two.safetensors", b=2)
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"two.safetensors: tensor 'b' is in one.safetensors too"):
        open_weights(tmp_path)


def test_a_tensor_listed_twice_is_refused(tmp_path: Path) -> None:
    text = '{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="key 'a' appears twice"):
        open_weights(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], "one.safetensors", 7])
def test_an_index_without_a_map_is_refused(weight_map: object, tmp_path: Path) -> None:
    index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match="weight_map is"):
        open_weights(tmp_path)


def test_a_directory_without_weights_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"holds no weights; expected model.safetensors"):
        open_weights(tmp_path)
