"""compressed-tensors' integer layouts: packed and whole, symmetric or not, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.formats.compressed import DYNAMIC, CompressedLayout, read_compressed
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.errors import CheckpointError, UnsupportedModelError

LAYOUTS = [
    CompressedLayout(4, 8),
    CompressedLayout(4, 8, symmetric=False),
    CompressedLayout(4, -1),
    CompressedLayout(8, 8, symmetric=False),
    CompressedLayout(8, -1, packed=False, activations=True),
    CompressedLayout(8, 8, symmetric=False, packed=False),
]


def random_tensor(layout: CompressedLayout, shape: tuple[int, int] = (12, 24)) -> QuantizedTensor:
    rng = np.random.default_rng(layout.bits)
    size = shape[1] if layout.group_size == -1 else layout.group_size
    scales = rng.uniform(0, 1, (shape[0], shape[1] // size)).astype(np.float32)
    zeros = np.full(scales.shape, layout.offset, np.int16)
    return QuantizedTensor(
        name="w",
        dtype=layout.dtype,
        bits=layout.bits,
        levels=rng.integers(0, 1 << layout.bits, shape).astype(np.uint8),
        scales=scales,
        group_size=size,
        zeros=zeros if layout.symmetric else rng.integers(0, 1 << layout.bits, scales.shape).astype(np.int16),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read_exactly_and_has_the_shapes_that_are_checked(layout: CompressedLayout) -> None:
    tensor = random_tensor(layout)
    parts, expected = layout.write(tensor), layout.parts(*tensor.shape)
    assert {name: part.shape for name, part in parts.items()} == {name: part.shape for name, part in expected.items()}
    read = layout.read("w", parts)
    for field in ("levels", "scales", "zeros", "group_size", "bits"):
        np.testing.assert_array_equal(getattr(read, field), getattr(tensor, field))
    np.testing.assert_array_equal(read.float32(), tensor.float32())


def test_integers_lie_where_the_format_puts_them() -> None:
    tensor = replace(random_tensor(CompressedLayout(4, 8)), levels=np.tile(np.arange(8, 16, dtype=np.uint8), (12, 3)))
    words = CompressedLayout(4, 8).write(tensor)["weight_packed"].view(np.uint32)
    assert {f"{word:08x}" for word in words.reshape(-1)} == {"fedcba98"}
    whole = CompressedLayout(8, -1, packed=False)
    integers = np.arange(-128, 128).astype(np.int8).reshape(8, 32)
    read = whole.read("w", {"weight": integers, "weight_scale": np.ones((8, 1), np.float32)})
    np.testing.assert_array_equal(read.float32(), integers.astype(np.float32))


def test_inputs_that_do_not_fill_a_word_are_padded() -> None:
    layout = CompressedLayout(4, -1)
    tensor = random_tensor(layout, (5, 11))
    assert layout.write(tensor)["weight_packed"].shape == (5, 2)
    np.testing.assert_array_equal(layout.read("w", layout.write(tensor)).float32(), tensor.float32())
    with pytest.raises(CheckpointError, match=r"weight_shape \[5, 40\]"):
        layout.read("w", layout.write(tensor) | {"weight_shape": np.array([5, 40])})


def test_impossible_matrices_are_refused() -> None:
    layout = CompressedLayout(4, 8)
    tensor = random_tensor(layout)
    with pytest.raises(CheckpointError, match=r"zero points outside 8 .. 8"):
        layout.write(replace(tensor, zeros=np.zeros_like(tensor.zeros)))
    with pytest.raises(CheckpointError, match="has the scale -1"):
        layout.read("w", layout.write(replace(tensor, scales=-np.ones_like(tensor.scales))))
    with pytest.raises(CheckpointError, match="has 20 inputs; expected a multiple of 8"):
        layout.parts(12, 20)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_config_comes_back_as_it_was_written(layout: CompressedLayout) -> None:
    assert read_compressed(Fields("config.json", layout.config())) == layout


def changed(top: dict[str, Any], weights: dict[str, Any], group: dict[str, Any]) -> Fields:
    config = CompressedLayout(4, 128).config()
    scheme = config["config_groups"]["group_0"]
    config["config_groups"]["group_0"] = scheme | {"weights": scheme["weights"] | weights} | group
    return Fields("config.json", config | top, "quantization_config.")


@pytest.mark.parametrize(
    ("named", "top", "weights", "group"),
    [
        ("kv_cache_scheme", {"kv_cache_scheme": {"num_bits": 8}}, {}, {}),
        ("format", {"format": "float-quantized"}, {}, {}),
        ("format", {"format": "marlin-24"}, {}, {}),
        ("transform_config", {"transform_config": {"config_groups": {"r": 1}}}, {}, {}),
        ("sparsity_config.format", {"sparsity_config": {"format": "sparse-24-bitmask"}}, {}, {}),
        ("config_groups.group_0.weights.type", {}, {"type": "float"}, {}),
        ("config_groups.group_0.weights.num_bits", {}, {"num_bits": 3}, {}),
        ("config_groups.group_0.weights.strategy", {}, {"strategy": "tensor"}, {}),
        ("config_groups.group_0.weights.actorder", {}, {"actorder": "group"}, {}),
        ("config_groups.group_0.weights.dynamic", {}, {"dynamic": True}, {}),
        ("config_groups.group_0.weights", {}, {}, {"weights": None}),
        ("config_groups.group_0.output_activations", {}, {}, {"output_activations": {"num_bits": 8}}),
        ("config_groups.group_0.input_activations.type", {}, {}, {"input_activations": DYNAMIC | {"type": "float"}}),
        (
            "config_groups.group_0.input_activations.dynamic",
            {},
            {},
            {"input_activations": DYNAMIC | {"dynamic": False}},
        ),
    ],
)
def test_what_is_not_done_is_refused_by_name_and_value(
    named: str, top: dict[str, Any], weights: dict[str, Any], group: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"quantization_config\.{named} is .*not supported"):
        read_compressed(changed(top, weights, group))


def test_groups_of_layers_must_agree() -> None:
    config = CompressedLayout(4, 128).config()
    config["config_groups"]["group_1"] = CompressedLayout(8, 128).config()["config_groups"]["group_0"]
    with pytest.raises(UnsupportedModelError, match="one scheme for all quantized layers"):
        read_compressed(Fields("config.json", config))
    with pytest.raises(CheckpointError, match="config_groups is None"):
        read_compressed(Fields("config.json", {"format": "pack-quantized"}))
