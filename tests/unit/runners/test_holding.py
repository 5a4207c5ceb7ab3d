"""What becomes of each weight, and what of it is lost; bytes against a runner's are in tests/parity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvik.checkpoint import DummyCheckpoint, open_checkpoint, write_gguf
from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.dummy import DUMMIES
from kvik.checkpoint.stored import StoredForm
from kvik.errors import CheckpointError
from kvik.quantize import QuantizeOptions, quantize
from kvik.runners.holding import HeldWeight, conversions, held_weights, total_bytes
from kvik.runners.placement import Placement


@pytest.fixture
def mixed(tmp_path: Path) -> Checkpoint:
    """Q8_0 but for down, which is F16, and vectors, which are F32."""
    write_gguf(tmp_path / "m.gguf", DummyCheckpoint("tiny-qwen2"), "Q8_0")
    return open_checkpoint(str(tmp_path / "m.gguf"))


def test_each_weight_goes_where_its_type_and_the_options_say(mixed: Checkpoint) -> None:
    held = held_weights(mixed, "auto", "native")
    assert {name: held[name].form for name in ("embed", "layers.0.down", "layers.0.q_bias")} == {
        "embed": "bytes",
        "layers.0.down": "bf16",
        "layers.0.q_bias": "f32",
    }
    assert held_weights(mixed, "int4", "native")["layers.0.down"].form == "int4"
    assert {each.form for each in held_weights(mixed, "int4", "reference").values()} == {"f32"}


def test_losses_are_told(mixed: Checkpoint) -> None:
    def losses(weights: str, backend: str = "native") -> dict[str, str | None]:
        return {each.stored: each.loss for each in conversions(held_weights(mixed, weights, backend))}

    rounded = "rounded: no value moves by more than 1/512 of itself"
    assert losses("auto") == {"Q8_0": None, "F16": rounded, "F32": None}
    assert losses("f32") == {"Q8_0": None, "F16": None, "F32": None}
    assert losses("int8")["F16"] == "quantized on load: to the nearest of 255 values of a row"
    assert losses("auto", "reference")["Q8_0"] == "unpacked, each value rounded once at most to float32"


def test_an_offset_beside_eight_bits_is_the_one_rounding() -> None:
    stored = StoredForm("q", "gptq-int8", 8, 64, (0, 256))
    one = HeldWeight(stored, (32, 64), "bytes", 0, Placement("bytes", 64, has_offsets=True))
    assert one.loss == "exact, but that each group's offset is rounded once to float32"
    assert replace(one, stored=replace(stored, bits=5)).loss is None


def test_conversions_count_weights_and_bytes(mixed: Checkpoint) -> None:
    held = held_weights(mixed, "auto", "cuda")
    found = conversions(held)
    assert sum(each.count for each in found) == len(mixed.spec.tensor_shapes())
    assert sum(each.bytes for each in found) == total_bytes(held, "cuda")
    assert [each.bytes for each in found] == sorted((each.bytes for each in found), reverse=True)
    assert found[0].sentence.startswith("a byte a weight, a float32 scale")


def test_one_kind_of_weights_is_one_line() -> None:
    (line,) = conversions(held_weights(DummyCheckpoint("tiny-qwen3"), "auto", "cuda"))
    assert (line.stored, line.form, line.loss, line.sentence) == ("bf16", "bf16", None, "2 bytes a value")
    assert line.bytes == 2 * DUMMIES["tiny-qwen3"].num_parameters()


def test_groups_that_no_form_has_are_refused_before_loading(tmp_path: Path) -> None:
    quantize(DummyCheckpoint("tiny-qwen2"), tmp_path / "out", QuantizeOptions("rtn", group_size=8, format="gptq"))
    opened = open_checkpoint(str(tmp_path / "out"))
    with pytest.raises(CheckpointError, match=r"layers\.0\.q has groups of 8 inputs; expected a multiple of 16"):
        held_weights(opened, "auto", "native")
    assert total_bytes(held_weights(opened, "auto", "reference"), "reference") == 4 * opened.spec.num_parameters()
