"""GPTQ's layout: bits where the format puts them, both versions of zero points, act-order, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.formats.gptq import GptqLayout, read_gptq
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.errors import CheckpointError, UnsupportedModelError


def random_tensor(bits: int, shape: tuple[int, int], size: int, *, shuffled: bool = False) -> QuantizedTensor:
    rng = np.random.default_rng(bits + size)
    groups = -(-shape[1] // size)
    return QuantizedTensor(
        name="w",
        dtype=f"gptq-int{bits}",
        bits=bits,
        levels=rng.integers(0, 1 << bits, shape).astype(np.uint8),
        scales=rng.uniform(0.01, 1, (shape[0], groups)).astype(np.float16).astype(np.float32),
        group_size=size,
        zeros=rng.integers(1, 1 << bits, (shape[0], groups)).astype(np.int16),
        order=rng.permutation(shape[1]).astype(np.int32) if shuffled else None,
    )


def stored_by_hand(tensor: QuantizedTensor, version: int) -> dict[str, Any]:
    """The parts, one integer at a time, as the format is described."""
    outputs, inputs = tensor.shape
    bits, per_word = tensor.bits, 32 // tensor.bits
    assert tensor.zeros is not None
    groups = tensor.scales.shape[1]
    qweight = np.zeros((inputs // per_word, outputs), np.uint32)
    qzeros = np.zeros((groups, outputs // per_word), np.uint32)
    for n in range(outputs):
        for i in range(inputs):
            qweight[i // per_word, n] |= np.uint32(int(tensor.levels[n, i]) << bits * (i % per_word))
        for g in range(groups):
            zero = int(tensor.zeros[n, g]) - (version == 1)
            qzeros[g, n // per_word] |= np.uint32(zero << bits * (n % per_word))
    g_idx = (np.arange(inputs) // tensor.group_size).astype(np.int32)
    return {
        "qweight": qweight.view(np.int32),
        "qzeros": qzeros.view(np.int32),
        "scales": tensor.scales.T,
        "g_idx": g_idx,
    }


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("version", [1, 2])
def test_every_bit_is_read_from_its_place(bits: int, version: int) -> None:
    tensor = random_tensor(bits, (16, 24), 8)
    layout = GptqLayout(bits, 8, version="gptq" if version == 1 else "gptq_v2")
    read = layout.read("w", stored_by_hand(tensor, version))
    assert read.order is None
    for field in ("levels", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(read, field), getattr(tensor, field))
    for part, expected in stored_by_hand(tensor, version).items():
        np.testing.assert_array_equal(layout.write(tensor)[part], expected)


def test_a_zero_of_the_first_version_reaches_two_to_the_bits() -> None:
    parts = stored_by_hand(random_tensor(4, (8, 8), 8), 1) | {"qzeros": np.full((1, 1), -1, np.int32)}
    assert (GptqLayout(4, 8).read("w", parts).zeros == 16).all()
    assert (GptqLayout(4, 8, version="gptq_v2").read("w", parts).zeros == 15).all()


def test_act_order_comes_out_with_groups_side_by_side() -> None:
    tensor = random_tensor(4, (8, 32), 8, shuffled=True)
    layout = GptqLayout(4, 8, act_order=True)
    parts = layout.write(tensor)
    assert not np.array_equal(parts["g_idx"], np.arange(32) // 8)
    read = layout.read("w", parts)
    assert read.order is not None
    assert sorted(read.order) == list(range(32))
    np.testing.assert_array_equal(parts["g_idx"][read.order], np.arange(32) // 8)
    np.testing.assert_array_equal(read.float32(), tensor.float32())


def test_groups_may_be_a_row_or_leave_a_shorter_last_one() -> None:
    whole = random_tensor(4, (8, 24), 24)
    assert GptqLayout(4, -1).read("w", GptqLayout(4, -1).write(whole)).group_size == 24
    ragged = random_tensor(4, (8, 24), 16)
    assert GptqLayout(4, 16).parts(8, 24)["scales"].shape == (2, 8)
    np.testing.assert_array_equal(
        GptqLayout(4, 16).read("w", GptqLayout(4, 16).write(ragged)).float32(), ragged.float32()
    )


def test_g_idx_may_be_missing_where_it_says_nothing() -> None:
    assert GptqLayout(4, 8).parts(8, 32)["g_idx"].optional
    assert not GptqLayout(4, 8, act_order=True).parts(8, 32)["g_idx"].optional
    tensor = random_tensor(4, (8, 32), 8)
    parts = GptqLayout(4, 8).write(tensor)
    del parts["g_idx"]
    np.testing.assert_array_equal(GptqLayout(4, 8).read("w", parts).float32(), tensor.float32())


@pytest.mark.parametrize("wrong", [np.full(32, 9), np.full(32, -1), np.zeros(32), np.arange(32) // 8 + 1])
def test_a_g_idx_of_uneven_groups_is_refused(wrong: Any) -> None:
    parts = GptqLayout(4, 8).write(random_tensor(4, (8, 32), 8)) | {"g_idx": wrong.astype(np.int32)}
    with pytest.raises(CheckpointError, match="g_idx that does not put 8 inputs into each of 4 groups"):
        GptqLayout(4, 8).read("w", parts)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_impossible_scales_are_refused(scale: float) -> None:
    tensor = random_tensor(4, (8, 32), 8)
    scales = tensor.scales.copy()
    scales[3, 2] = scale
    with pytest.raises(CheckpointError, match=f"has the scale {scale}"):
        GptqLayout(4, 8).read("w", GptqLayout(4, 8).write(replace(tensor, scales=scales)))


def test_zeros_that_a_version_cannot_hold_are_not_written() -> None:
    tensor = replace(random_tensor(4, (8, 8), 8), zeros=np.zeros((8, 1), np.int16))
    with pytest.raises(CheckpointError, match=r"zero points 0 .. 0, which gptq cannot hold"):
        GptqLayout(4, 8).write(tensor)
    assert (GptqLayout(4, 8, version="gptq_v2").write(tensor)["qzeros"] == 0).all()


def test_shapes_that_do_not_fill_words_are_refused() -> None:
    with pytest.raises(CheckpointError, match="has 12 inputs; expected a multiple of 8"):
        GptqLayout(4, 4).parts(8, 12)
    with pytest.raises(CheckpointError, match="has 6 outputs; expected a multiple of 4"):
        GptqLayout(8, 4).parts(6, 12)


CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": False}


@pytest.mark.parametrize("layout", [GptqLayout(4, 128), GptqLayout(8, -1, True, False, "gptq_v2")])
def test_a_config_comes_back_as_it_was_written(layout: GptqLayout) -> None:
    assert read_gptq(Fields("config.json", layout.config())) == layout


def test_configs_of_other_tools_are_read() -> None:
    assert read_gptq(Fields("c", CONFIG)) == GptqLayout(4, 128, True, False)
    assert read_gptq(Fields("c", CONFIG | {"format": "gptq_v2", "dynamic": {"-:lm_head": {}}})).version == "gptq_v2"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("bits", value) for value in (3, 2, 16, True, "4", None)),
        *(("checkpoint_format", value) for value in ("marlin", "bitblas", 1, ["gptq"])),
        ("is_marlin_format", True),
        ("pack_dtype", "int16"),
        ("dynamic", {"+:.*down.*": {"bits": 8}}),
        ("adapter", {"name": "lora"}),
    ],
)
def test_what_is_not_done_is_refused_by_name_and_value(field: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"quantization_config\.{field} is "):
        read_gptq(Fields("config.json", CONFIG | {field: value}, "quantization_config."))


@pytest.mark.parametrize("size", [0, -2, "128", None, 2.0, True])
def test_an_impossible_group_size_is_refused(size: object) -> None:
    with pytest.raises(CheckpointError, match="group_size is"):
        read_gptq(Fields("config.json", CONFIG | {"group_size": size}))
