"""Memory planned from headers against memory taken: equal to the byte for every form of the native runner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from contenders import make_runner
from quantized_toys import SPECS, Make, QuantizedToy, grouped, k_quant, quantized_toy

from kvik.checkpoint import Checkpoint, DummyCheckpoint, open_checkpoint, write_gguf
from kvik.checkpoint.stored import StoredForm
from kvik.quantize import QuantizeOptions, quantize
from kvik.runners.holding import held_weights, total_bytes
from kvik.runners.native import available
from kvik.runners.placement import described

pytestmark = pytest.mark.skipif(not available(), reason="the native runner was not built")


@dataclass(frozen=True)
class ToldToy(QuantizedToy):
    """A toy that says what a file's header would."""

    def stored_form(self, name: str) -> StoredForm:
        record = self.records.get(name)
        return StoredForm(name, self.spec.dtype) if record is None else described(record)


MAKES: dict[str, Make | Mapping[str, Make]] = {
    "int4": grouped(4, 64, zeros=(0, 16)),
    "int4 by rows": grouped(4, 0),
    "int4 with units": grouped(4, 32, scale_by=2.0**-20),
    "units in one of two": {"gate": grouped(4, 32), "up": grouped(4, 32, scale_by=2.0**-20)},
    "apart": {"gate": grouped(4, 96), "up": grouped(5, 32, mins=True)},
    "one of two": {"up": grouped(4, 96), "embed": grouped(4, 32)},
    "int8": grouped(8, 0),
    "bytes": grouped(6, 16),
    "bytes in groups of 48": grouped(5, 48),
    "offsets": grouped(8, 64, zeros=(0, 256)),
    "ordered": {"o": grouped(4, 64, order=True), "down": grouped(8, 0, order=True)},
    "Q4_K_M": {"q": k_quant(4), "v": k_quant(6), "embed": k_quant(6), "down": k_quant(4)},
}


def check_planned(checkpoint: Checkpoint, weights: str = "auto") -> None:
    runner = make_runner("auto", weights, "auto", threads=1)
    runner.load(checkpoint)
    taken = runner.memory().weights
    runner.close()
    assert total_bytes(held_weights(checkpoint, weights, "native"), "native") == taken


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("spec", SPECS)
def test_of_quantized_toys(spec: str, make: str) -> None:
    made = quantized_toy(SPECS[spec], MAKES[make])
    check_planned(ToldToy(made.plain, made.records))


def test_of_a_toy_whose_other_weights_are_quantized_on_load() -> None:
    made = quantized_toy(SPECS["tails"], {"q": grouped(4, 32), "up": grouped(8, 0), "down": grouped(4, 32)})
    for weights in ("int8", "int4"):
        check_planned(ToldToy(made.plain, made.records), weights)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M"])
@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-qwen2"])
def test_of_gguf_files(name: str, kind: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", DummyCheckpoint(name), kind)
    check_planned(open_checkpoint(str(tmp_path / "m.gguf")))


def test_of_the_box_as_q4_k_m(tmp_path: Path) -> None:
    write_gguf(tmp_path / "box.gguf", open_checkpoint(None), "Q4_K_M", pre="starcoder")
    check_planned(open_checkpoint(str(tmp_path / "box.gguf")))


@pytest.mark.parametrize(
    "options",
    [
        QuantizeOptions("rtn", group_size=32, format="gptq"),
        QuantizeOptions("rtn", group_size=32, format="gptq", bits=8, symmetric=False),
        QuantizeOptions("rtn", group_size=32, format="gptq", bits=8),
        QuantizeOptions("rtn", group_size=16, format="awq"),
        QuantizeOptions("rtn", group_size=32, format="compressed"),
        QuantizeOptions("rtn", group_size=32, format="compressed", bits=8, symmetric=False),
        QuantizeOptions("rtn", group_size=-1, format="compressed", bits=8),
    ],
    ids=lambda options: f"{options.format} {options.bits} {options.group_size} {options.symmetric}",
)
def test_of_quantized_directories(options: QuantizeOptions, tmp_path: Path) -> None:
    quantize(DummyCheckpoint.from_spec(SPECS["even"]), tmp_path / "out", options)
    check_planned(open_checkpoint(str(tmp_path / "out")))
