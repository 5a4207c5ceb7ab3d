"""A job from end to end: same seed same bytes, interruptions gone on with, and one clear error for each bad wish."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvik.checkpoint import DummyCheckpoint, HuggingFaceCheckpoint, open_checkpoint, write_checkpoint
from kvik.checkpoint.checkpoint import Tensor
from kvik.checkpoint.dummy import DUMMIES
from kvik.errors import CheckpointError, ConfigError
from kvik.quantize import QuantizeOptions, partial_of, quantize
from kvik.quantize.calibration import cut_sequences
from kvik.quantize.run import check_fits
from kvik.step import as_int32

SMALL = replace(DUMMIES["tiny-llama"], hidden_size=32, intermediate_size=64, head_dim=8, num_heads=4)
IDS = as_int32(np.random.default_rng(1).integers(0, 300, (6, 32)))
ALL = [
    QuantizeOptions("gptq", group_size=16, act_order=True),
    QuantizeOptions("gptq", group_size=-1, bits=8, symmetric=False),
    QuantizeOptions("gptq", group_size=16, format="compressed"),
    QuantizeOptions("awq", group_size=8),
    QuantizeOptions("int8"),
    QuantizeOptions("rtn", group_size=8),
]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class Interrupted:
    """Shows progress, and is interrupted before it gives out this layer."""

    def __init__(self, before: int) -> None:
        self.before = before
        self.seen: tuple[int, int] = (0, 0)

    def __call__(self, layers: Iterable[int], total: int, done: int) -> Iterable[int]:
        self.seen = (total, done)
        for layer in layers:
            if layer == self.before:
                raise KeyboardInterrupt
            yield layer


@pytest.mark.parametrize("options", ALL, ids=lambda o: f"{o.method}-{o.chosen_format}")
def test_a_job_that_was_interrupted_ends_in_the_same_bytes(options: QuantizeOptions, tmp_path: Path) -> None:
    source = DummyCheckpoint.from_spec(SMALL, seed=4)
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    quantize(source, whole, options, IDS)
    for before in (0, 2):
        with pytest.raises(KeyboardInterrupt):
            quantize(source, begun, options, IDS, Interrupted(before))
        assert not begun.exists()
        assert [path.name for path in partial_of(begun).iterdir()] == ["work"]
    again = Interrupted(-1)
    made = quantize(source, begun, options, IDS, again)
    assert again.seen == (3, 2)
    assert (made.layers, made.layers_taken_over) == (3, 2)
    assert files(begun) == files(whole)
    assert not partial_of(begun).exists()
    assert HuggingFaceCheckpoint(begun).spec == source.spec
    assert made.bytes_after < made.bytes_before


def test_another_seed_of_sequences_is_another_job(tmp_path: Path) -> None:
    source, options = DummyCheckpoint("tiny-llama"), QuantizeOptions("gptq", group_size=8)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "out", options, IDS, Interrupted(1))
    with pytest.raises(ConfigError, match=r"out.partial holds another job, begun and not finished; delete it"):
        quantize(source, tmp_path / "out", options, IDS[:4])
    with pytest.raises(ConfigError, match="holds another job"):
        quantize(DummyCheckpoint("tiny-llama", seed=9), tmp_path / "out", options, IDS)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    partial = partial_of(tmp_path / "out")
    partial.mkdir()
    (partial / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty, and no job of this program"):
        quantize(DummyCheckpoint("tiny-llama"), tmp_path / "out", QuantizeOptions("rtn", group_size=8))
    assert (partial / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("fails_at", ["layer-00001.safetensors.tmp", "inputs-00001.npy.tmp", "model.safetensors.tmp"])
def test_a_full_disk_leaves_nothing_half_written_and_can_be_gone_on_with(
    fails_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, options = DummyCheckpoint.from_spec(SMALL), QuantizeOptions("gptq", group_size=16)
    quantize(source, tmp_path / "whole", options, IDS)
    opened = Path.open

    class Full:
        """A file on a disk that fills up after a few bytes."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, data: Any) -> int:
            self._file.write(bytes(data)[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_(path: Path, *args: Any, **kwargs: Any) -> Any:
        file = opened(path, *args, **kwargs)
        return Full(file) if path.name == fails_at else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_)
        with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
            quantize(source, tmp_path / "out", options, IDS)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    quantize(source, tmp_path / "out", options, IDS)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


class Spoiled(DummyCheckpoint):
    """A dummy with NaN in one weight."""

    def __init__(self, name: str, spoiled: str) -> None:
        super().__init__(name)
        self._spoiled = spoiled

    def tensor(self, name: str) -> Tensor:
        tensor = super().tensor(name)
        if name == self._spoiled:
            tensor.data.reshape(-1)[: tensor.data.size // 2] = 0x7FC0
        return tensor


@pytest.mark.parametrize("name", ["layers.1.down", "layers.0.attn_norm", "embed"])
def test_weights_that_are_not_numbers_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"weight {name} holds NaN or infinity"):
        quantize(Spoiled("tiny-llama", name), tmp_path / "out", QuantizeOptions("gptq", group_size=8), IDS)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_there_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    source, options = DummyCheckpoint("tiny-llama"), QuantizeOptions("rtn", group_size=8)
    (tmp_path / "file").write_text("x")
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").write_text("x")
    for out in (tmp_path / "file", full):
        with pytest.raises(ConfigError, match="exists and is not an empty directory"):
            quantize(source, out, options)
    (tmp_path / "empty").mkdir()
    quantize(source, tmp_path / "empty", options)
    assert (tmp_path / "empty" / "model.safetensors").exists()


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    options = QuantizeOptions("rtn", group_size=8)
    quantize(DummyCheckpoint("tiny-llama"), tmp_path / "once", options)
    with pytest.raises(ConfigError, match=r"is quantized already \(int4\)"):
        quantize(open_checkpoint(str(tmp_path / "once")), tmp_path / "twice", options)


def test_groups_must_divide_and_words_must_be_filled() -> None:
    spec = DummyCheckpoint("tiny-llama").spec
    with pytest.raises(ConfigError, match="group_size is 128; expected a divisor of 64, the inputs of q; such as 8"):
        check_fits(QuantizeOptions("gptq"), spec)
    with pytest.raises(ConfigError, match="group_size is 64; expected a divisor of 168, the inputs of down; such as 8"):
        check_fits(QuantizeOptions("gptq", group_size=64), spec)
    check_fits(QuantizeOptions("int8"), spec)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"method": "hqq"}, "method is 'hqq'; expected one of gptq, awq, int8, rtn"),
        ({"method": "gptq", "bits": 3}, "bits is 3; expected 4 or 8"),
        ({"method": "gptq", "group_size": 0}, "group_size is 0; expected -1 or"),
        ({"method": "gptq", "damp": 0.0}, "damp is 0; expected"),
        ({"method": "gptq", "format": "exl3"}, "format is 'exl3'; expected one of"),
        ({"method": "gptq", "num_sequences": 0}, "num_sequences is 0"),
        ({"method": "awq", "bits": 8}, "bits is 8; method awq has 4"),
        ({"method": "int8", "bits": 4}, "int8 has 8 bits"),
        (
            {"method": "gptq", "format": "gguf"},
            "format gguf rounds in blocks of its own; expected method rtn, not gptq",
        ),
        ({"method": "int8", "format": "gptq"}, "format gptq cannot hold int8"),
        ({"method": "rtn", "act_order": True}, "act_order is for method gptq"),
        ({"method": "gptq", "act_order": True, "format": "awq"}, "format awq cannot hold act_order"),
        ({"method": "gptq", "bits": 8, "format": "awq"}, "bits is 8; format awq holds 4"),
    ],
)
def test_impossible_wishes_are_refused_by_name(wish: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        QuantizeOptions(**wish)


def test_a_method_that_calibrates_wants_sequences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method gptq needs calibration sequences"):
        quantize(DummyCheckpoint("tiny-llama"), tmp_path / "out", QuantizeOptions("gptq", group_size=8))
    options = QuantizeOptions("gptq", group_size=8)
    with pytest.raises(ConfigError, match=r"has token 400; expected 0 to 306"):
        quantize(DummyCheckpoint("tiny-llama"), tmp_path / "out", options, np.full_like(IDS, 400))


def test_config_and_the_files_beside_it_come_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_checkpoint(DummyCheckpoint("tiny-qwen3"), source)
    config = json.loads((source / "config.json").read_text()) | {"note": "kept"}
    (source / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"):
        (source / name).write_text("{}")
    quantize(open_checkpoint(str(source)), tmp_path / "out", QuantizeOptions("rtn", group_size=8, format="gptq"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    }
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    described = written.pop("quantization_config")
    assert written == config
    assert (described["quant_method"], described["bits"], described["group_size"]) == ("gptq", 4, 8)


@pytest.mark.parametrize(("bits", "kind"), [(4, "Q8_0"), (8, "Q8_0")])
def test_gguf_is_one_file_with_blocks_of_its_own(bits: int, kind: str, tmp_path: Path) -> None:
    source, options = DummyCheckpoint.from_spec(SMALL), QuantizeOptions("rtn", bits=bits, format="gguf")
    made = quantize(source, tmp_path / "out.gguf", options)
    assert made.bytes_after == (tmp_path / "out.gguf").stat().st_size
    read, plain = open_checkpoint(str(tmp_path / "out.gguf")).tensor("layers.0.q"), source.tensor("layers.0.q")
    # Rows of 32 take no K-blocks: the writer's next finer type.
    assert read.dtype == kind
    assert np.abs(read.float32() - plain.float32()).max() < 0.01 * np.abs(plain.float32()).max()
    with pytest.raises(ConfigError, match="exists; expected a new file"):
        quantize(source, tmp_path / "out.gguf", options)
    with pytest.raises(ConfigError, match="expected a name that ends in"):
        quantize(source, tmp_path / "out", options)


def test_large_results_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, options = DummyCheckpoint("tiny-llama"), QuantizeOptions("rtn", group_size=8)
    quantize(source, tmp_path / "one", options)
    monkeypatch.setattr("kvik.quantize.assemble.MAX_SHARD_BYTES", 60_000)
    quantize(source, tmp_path / "many", options)
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 2
    one, many = HuggingFaceCheckpoint(tmp_path / "one"), HuggingFaceCheckpoint(tmp_path / "many")
    for name in source.spec.tensor_shapes():
        np.testing.assert_array_equal(one.tensor(name).float32(), many.tensor(name).float32())


def test_sequences_are_cut_without_overlap_and_picked_by_the_seed() -> None:
    ids = list(range(1000))
    assert cut_sequences(ids, [], 5, 200, 0).tolist() == [ids[at : at + 200] for at in range(0, 1000, 200)]
    headed = cut_sequences(ids, [7], 100, 101, 0)
    assert (headed[:, 0] == 7).all()
    assert headed[:, 1:].reshape(-1).tolist() == ids
    first, second = cut_sequences(ids, [], 10, 20, 0), cut_sequences(ids, [], 10, 20, 1)
    assert first.shape == (10, 20)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, cut_sequences(ids, [], 10, 20, 0))
    with pytest.raises(ConfigError, match="has 1000 tokens; expected at least 2048, 4 sequences of 512"):
        cut_sequences(ids, [], 10, 512, 0)
