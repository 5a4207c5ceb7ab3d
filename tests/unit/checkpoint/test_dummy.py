"""Dummy models: the true shapes, and weights that are a function of seed and name."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvik.checkpoint import DummyCheckpoint
from kvik.checkpoint.dummy import DUMMIES
from kvik.checkpoint.families import FAMILIES, read_spec
from kvik.checkpoint.families.fields import Fields
from kvik.errors import CheckpointError

CONFIGS = Path("../shared/data/tokenizers/qwen3")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_the_true_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert DUMMIES[name].num_parameters() == parameters


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-4b"])
def test_the_true_shapes_are_those_of_the_published_configs(name: str) -> None:
    found = [path for path in CONFIGS.glob("config.*.json") if name in path.name.lower()]
    if not found:
        pytest.skip(f"no config of {name} in {CONFIGS}")
    assert read_spec(Fields(str(found[0]), json.loads(found[0].read_text()))) == DUMMIES[name]


def test_every_family_has_a_tiny_dummy() -> None:
    assert {spec.family for name, spec in DUMMIES.items() if name.startswith("tiny-")} == set(FAMILIES)


def test_a_tensor_depends_on_seed_and_name_and_on_nothing_else() -> None:
    one, other = DummyCheckpoint("tiny-qwen3", seed=1), DummyCheckpoint("dummy:tiny-qwen3", seed=1)
    other.tensor("layers.0.q")
    np.testing.assert_array_equal(one.tensor("layers.1.k").data, other.tensor("layers.1.k").data)
    assert (one.tensor("layers.0.k").data != one.tensor("layers.1.k").data).mean() > 0.99
    changed = DummyCheckpoint("tiny-qwen3", seed=2).tensor("layers.1.k").data
    assert (one.tensor("layers.1.k").data != changed).mean() > 0.99


def test_the_bytes_never_change_between_versions() -> None:
    checkpoint = DummyCheckpoint("tiny-qwen3")
    assert checkpoint.tensor("embed").data[0, :4].tolist() == [48298, 48260, 15500, 47776]
    assert checkpoint.tensor("final_norm").data[:4].tolist() == [16264, 16252, 16236, 16260]


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_weights_are_normal_and_norms_lie_around_one(dtype: str) -> None:
    spec = replace(DUMMIES["tiny-qwen2"], dtype=dtype, hidden_size=1024, qk_norm=True)
    checkpoint = DummyCheckpoint.from_spec(spec)
    weights = checkpoint.tensor("layers.0.gate")
    assert (weights.dtype, weights.shape) == (dtype, (168, 1024))
    values = weights.float32()
    assert abs(values.mean()) < 2e-4
    assert 0.0198 < values.std() < 0.0202
    assert 0.0019 < (np.abs(values) > 0.062).mean() < 0.0020 + 0.0004
    assert 0.98 < checkpoint.tensor("final_norm").float32().mean() < 1.02
    assert 0.08 < checkpoint.tensor("final_norm").float32().std() < 0.12
    assert np.abs(checkpoint.tensor("layers.0.q_norm").float32() - 1).max() < 0.5
    assert 0.01 < checkpoint.tensor("layers.0.q_bias").float32().std() < 0.03


def test_neighbours_are_not_correlated() -> None:
    values = DummyCheckpoint("tiny-llama").tensor("embed").float32().ravel()
    for lag in (1, 2, 4, 64):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 0.03


@pytest.mark.parametrize("count", [1, 3, 65_535, 65_536, 65_537])
def test_any_number_of_elements_is_a_beginning_of_the_same_row(count: int) -> None:
    spec = replace(DUMMIES["tiny-llama"], hidden_size=count)
    longer = replace(spec, hidden_size=70_000)
    short = DummyCheckpoint.from_spec(spec).tensor("final_norm").data
    np.testing.assert_array_equal(short, DummyCheckpoint.from_spec(longer).tensor("final_norm").data[:count])


def test_making_a_tensor_takes_little_more_than_the_tensor() -> None:
    checkpoint = DummyCheckpoint.from_spec(replace(DUMMIES["tiny-llama"], vocab_size=200_000))
    checkpoint.tensor("layers.0.q")
    tracemalloc.start()
    tensor = checkpoint.tensor("embed")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tensor.data.nbytes == 25_600_000
    assert peak < tensor.data.nbytes + (4 << 20)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"no dummy model 'qwen9'; expected one of qwen3-0.6b, qwen3-1.7b"):
        DummyCheckpoint("dummy:qwen9")
    checkpoint = DummyCheckpoint("tiny-qwen3")
    with pytest.raises(CheckpointError, match="has no weight named 'head'"):
        checkpoint.tensor("head")
    with pytest.raises(CheckpointError, match="dtype is 'int8'; expected one of bf16, f16, f32"):
        DummyCheckpoint.from_spec(replace(checkpoint.spec, dtype="int8"))


def test_a_dummy_has_a_name_and_no_directory() -> None:
    checkpoint = DummyCheckpoint("tiny-qwen3")
    checkpoint.release("embed")
    assert (checkpoint.name, checkpoint.directory) == ("dummy:tiny-qwen3", None)
