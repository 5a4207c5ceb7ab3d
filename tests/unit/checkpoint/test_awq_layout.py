"""AWQ's layout: its order of outputs in a word, its zero points, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.formats.awq import AwqLayout, read_awq
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.errors import CheckpointError, UnsupportedModelError

CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "GEMM"}


def random_tensor() -> QuantizedTensor:
    rng = np.random.default_rng(1)
    return QuantizedTensor(
        name="w",
        dtype="awq-int4",
        bits=4,
        levels=rng.integers(0, 16, (16, 24)).astype(np.uint8),
        scales=rng.uniform(0, 1, (16, 3)).astype(np.float16).astype(np.float32),
        group_size=8,
        zeros=rng.integers(0, 16, (16, 3)).astype(np.int16),
    )


def test_outputs_lie_in_a_word_in_the_order_of_the_format() -> None:
    tensor = replace(random_tensor(), levels=np.tile(np.arange(8, dtype=np.uint8)[:, None], (2, 24)))
    parts = AwqLayout(8).write(tensor)
    assert parts["qweight"].shape == (24, 2)
    assert {f"{word:08x}" for word in parts["qweight"].view(np.uint32).reshape(-1)} == {"75316420"}


def test_what_is_written_is_read_exactly() -> None:
    tensor = random_tensor()
    read = AwqLayout(8).read("w", AwqLayout(8).write(tensor))
    for field in ("levels", "scales", "zeros", "group_size", "bits", "dtype"):
        np.testing.assert_array_equal(getattr(read, field), getattr(tensor, field))
    np.testing.assert_array_equal(read.float32(), tensor.float32())


def test_parts_and_their_shapes() -> None:
    shapes = {name: part.shape for name, part in AwqLayout(8).parts(16, 24).items()}
    assert shapes == {"qweight": (24, 2), "qzeros": (3, 2), "scales": (3, 16)}
    assert AwqLayout(-1).parts(16, 24)["scales"].shape == (1, 16)
    with pytest.raises(CheckpointError, match="has 20 outputs; expected a multiple of 8"):
        AwqLayout(8).parts(20, 24)
    with pytest.raises(CheckpointError, match="has 24 inputs; expected a multiple of 16"):
        AwqLayout(16).parts(16, 24)


def test_impossible_matrices_are_refused() -> None:
    tensor = random_tensor()
    with pytest.raises(CheckpointError, match="act-order"):
        AwqLayout(8).write(replace(tensor, order=np.arange(24, dtype=np.int32)))
    scales = tensor.scales.copy()
    scales[0, 0] = np.nan
    with pytest.raises(CheckpointError, match="has the scale nan"):
        AwqLayout(8).read("w", AwqLayout(8).write(replace(tensor, scales=scales)))


def test_configs_are_read() -> None:
    assert read_awq(Fields("c", AwqLayout(128).config())) == AwqLayout(128)
    assert read_awq(Fields("c", CONFIG)) == AwqLayout(64)


@pytest.mark.parametrize(
    ("field", "value"), [("bits", 3), ("bits", 8), ("version", "gemv"), ("version", "marlin"), ("zero_point", False)]
)
def test_what_is_not_done_is_refused_by_name_and_value(field: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"quantization_config\.{field} is '?{value}"):
        read_awq(Fields("config.json", CONFIG | {field: value}, "quantization_config."))
    with pytest.raises(CheckpointError, match="group_size is 0"):
        read_awq(Fields("config.json", CONFIG | {"group_size": 0}))
