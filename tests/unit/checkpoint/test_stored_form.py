"""What headers tell of a weight is what is found in it once it is read, and is told without reading it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvik.checkpoint import DummyCheckpoint, open_checkpoint, write_gguf
from kvik.checkpoint.dummy import DUMMIES
from kvik.checkpoint.formats.gguf.layouts import TYPES, BlockType
from kvik.checkpoint.formats.gguf.unpack import unpack
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.stored import StoredForm, TellsStoredForms, of_block_type, stored_form
from kvik.errors import CheckpointError
from kvik.quantize import QuantizeOptions, quantize
from kvik.runners.placement import described, place, place_stored

QUANTIZED = [kind for kind in TYPES.values() if kind.quantized]


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_a_block_type_tells_what_its_blocks_hold(kind: BlockType) -> None:
    read = unpack("layers.0.q", kind, np.zeros((32, 512 // kind.elements), kind.layout), "here")
    told, found = of_block_type("layers.0.q", kind), described(read)
    for field in ("name", "dtype", "bits", "group_size", "zeros", "is_ordered", "in_super_blocks"):
        assert getattr(told, field) == getattr(found, field), field
    assert told.is_quantized
    assert place_stored(told, read.shape) == place(read)


def test_plain_types_are_called_as_the_file_calls_them(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", DummyCheckpoint("tiny-qwen2"), "Q8_0")
    opened = open_checkpoint(str(tmp_path / "m.gguf"))
    forms = {name: stored_form(opened, name) for name in ("embed", "layers.0.down", "final_norm")}
    assert {name: form.dtype for name, form in forms.items()} == {
        "embed": "Q8_0",
        "layers.0.down": "F16",
        "final_norm": "F32",
    }
    assert [form.is_quantized for form in forms.values()] == [True, False, False]
    assert isinstance(opened, TellsStoredForms)
    with pytest.raises(CheckpointError, match="has no weight named 'nothing'"):
        opened.stored_form("nothing")


def test_a_checkpoint_that_does_not_tell_stores_all_alike() -> None:
    dummy = DummyCheckpoint("tiny-llama")
    assert stored_form(dummy, "embed") == StoredForm("embed", "bf16")
    assert stored_form(open_checkpoint(None), "final_norm") == StoredForm("final_norm", "bf16")


@pytest.mark.parametrize("form", ["gptq", "awq", "compressed"])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_a_directory_tells_what_its_matrices_hold(form: str, dtype: str, tmp_path: Path) -> None:
    """Scales are given out unless they are f16, for which a form with f16 scales always serves."""
    options = QuantizeOptions("rtn", group_size=32, symmetric=form != "awq", format=form)
    source = DummyCheckpoint.from_spec(replace(DUMMIES["tiny-qwen2"], dtype=dtype, intermediate_size=192))
    quantize(source, tmp_path / "out", options)
    opened = open_checkpoint(str(tmp_path / "out"))
    for name in ("layers.0.q", "layers.1.down"):
        told, read = stored_form(opened, name), opened.tensor(name)
        assert isinstance(read, QuantizedTensor)
        assert (told.dtype, told.bits, told.group_size) == (read.dtype, read.bits, read.group_size)
        assert told.zeros == ((0, 16) if form == "awq" else (8, 8))
        if told.scales is not None:
            np.testing.assert_array_equal(told.scales, read.scales)
        assert place_stored(told, read.shape) == place(read)
    assert stored_form(opened, "embed") == StoredForm("embed", dtype)


def test_act_order_is_told(tmp_path: Path) -> None:
    source = DummyCheckpoint("tiny-qwen3")
    tokens = np.random.default_rng(0).integers(0, source.spec.vocab_size, (4, 16)).astype(np.int32)
    for act_order in (False, True):
        options = QuantizeOptions("gptq", group_size=8, act_order=act_order)
        quantize(source, tmp_path / str(act_order), options, tokens)
        assert stored_form(open_checkpoint(str(tmp_path / str(act_order))), "layers.0.q").is_ordered == act_order
