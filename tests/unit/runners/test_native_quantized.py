"""Quantized weights at the library's door: what is refused, and that nothing runs before all is there."""

from __future__ import annotations

import ctypes as c
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import whole_prompt

from kvik.checkpoint.dummy import DUMMIES, DummyCheckpoint
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.spec import DecoderSpec
from kvik.config import RunnerOptions
from kvik.errors import BackendError, CheckpointError
from kvik.runners.native import NativeRunner, available
from kvik.runners.native.library import FORMS, ROLES, QuantizedStruct, address, call
from kvik.runners.native.quantized import PackedArrays
from kvik.runners.native.runner import are_alike
from kvik.runners.placement import place

pytestmark = pytest.mark.skipif(not available(), reason="the native runner was not built")
SPEC = DUMMIES["tiny-llama"]


def record(name: str, rows: int, columns: int, group_size: int = 32, **more: Any) -> QuantizedTensor:
    groups = -(-columns // group_size)
    levels = np.random.default_rng(0).integers(0, 16, (rows, columns)).astype(np.uint8)
    scales, zeros = np.full((rows, groups), 0.015625, np.float32), np.full((rows, groups), 8, np.int16)
    return QuantizedTensor(name, "made up", 4, levels, scales, group_size, **{"zeros": zeros, **more})


class PartlyQuantized:
    """A dummy of which one weight is a record."""

    name, directory = "partly quantized", None

    def __init__(self, changed: QuantizedTensor) -> None:
        self._plain, self._changed = DummyCheckpoint.from_spec(SPEC), changed

    @property
    def spec(self) -> DecoderSpec:
        return SPEC

    def tensor(self, name: str) -> Any:
        return self._changed if name == self._changed.name else self._plain.tensor(name)

    def release(self, name: str) -> None:
        """Nothing is mapped."""


def loaded(changed: QuantizedTensor) -> NativeRunner:
    runner = NativeRunner(RunnerOptions(threads=1))
    runner.load(PartlyQuantized(changed))
    return runner


def test_a_weight_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(BackendError, match="a quantized weight of the wrong shape"):
        loaded(record("layers.0.q", 64, 32))


def test_an_order_that_names_no_input_is_refused() -> None:
    order = np.arange(64, dtype=np.int32)
    order[7] = 64
    with pytest.raises(BackendError, match="an order of inputs that names input 64"):
        loaded(record("layers.0.q", 64, 64, order=order))


def test_groups_without_a_kernel_are_refused_by_name_and_by_the_library() -> None:
    with pytest.raises(CheckpointError, match=r"layers\.0\.q has groups of 24 inputs"):
        loaded(record("layers.0.q", 64, 64, group_size=24))
    runner = loaded(record("layers.0.q", 64, 64))
    weight = record("layers.0.q", 64, 64)
    struct = PackedArrays(weight, place(weight)).struct
    struct.group = 24
    with pytest.raises(BackendError, match="form 4 with groups of 24, which has no kernel"):
        call(runner._library.kvik_load_quantized, runner._loaded(), ROLES.index("q"), 0, c.byref(struct))


def test_halves_of_different_forms_are_refused_where_they_would_share_a_matrix() -> None:
    runner = loaded(record("layers.0.gate", 168, 64))
    for role, group_size in (("gate", 32), ("up", 64)):
        weight = record(f"layers.1.{role}", 168, 64, group_size)
        arrays = PackedArrays(weight, place(weight))
        place_in_model = (runner._loaded(), ROLES.index(role), 1)
        with pytest.raises(BackendError, match="gate and up of a layer have different forms"):
            call(runner._library.kvik_load_quantized, *place_in_model, c.byref(arrays.struct))


def test_a_step_before_every_weight_is_there_is_refused() -> None:
    runner = NativeRunner(RunnerOptions(threads=1))
    runner._model, runner._spec = runner._create(SPEC, "bf16", "bf16"), SPEC
    runner.allocate(1, 32)
    with pytest.raises(BackendError, match="a step before every weight was loaded"):
        runner.logits(whole_prompt([1, 2, 3]))


def test_a_scale_that_is_not_a_number_is_seen_in_the_logits() -> None:
    sick = record("layers.0.down", 64, 168)
    sick.scales[5, 1] = np.nan
    runner = loaded(sick)
    runner.allocate(1, 32)
    assert not np.isfinite(runner.logits(whole_prompt([1, 2, 3]))).any()


def test_what_can_share_a_matrix() -> None:
    gate, order = record("layers.0.gate", 168, 64), np.arange(64, dtype=np.int32)[::-1].copy()
    plain = DummyCheckpoint.from_spec(SPEC).tensor("layers.0.up")
    assert are_alike(gate)
    assert are_alike(plain, plain)
    assert are_alike(gate, record("layers.0.up", 168, 64))
    assert are_alike(replace(gate, order=order), replace(gate, order=order.copy()))
    assert are_alike(gate, replace(gate, scales=gate.scales * np.float32(2.0**-24)))
    assert not are_alike(gate, plain)
    assert not are_alike(plain, gate)
    assert not are_alike(gate, record("layers.0.up", 168, 64, 64))
    assert not are_alike(gate, replace(gate, order=order))
    assert not are_alike(replace(gate, order=order[::-1].copy()), replace(gate, order=order))


def test_arrays_point_at_what_the_record_holds() -> None:
    """Nothing is copied that need not be; scales that do not fit f16 are divided by a power of two."""
    weight = record("layers.0.q", 64, 64)
    tiny = replace(weight, scales=weight.scales * np.float32(2.0**-24))
    arrays, of_tiny = PackedArrays(weight, place(weight)), PackedArrays(tiny, place(tiny))
    assert (arrays.struct.form, arrays.struct.group) == (FORMS["int4"], 32)
    assert (arrays.struct.rows, arrays.struct.columns) == (64, 64)
    assert arrays.struct.levels == address(weight.levels)
    assert not arrays.struct.units
    assert of_tiny.struct.units
    assert QuantizedStruct().levels is None
