"""Broken checkpoints: whatever is done to a file, it opens cleanly or is a CheckpointError, in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvik.checkpoint import DummyCheckpoint, HuggingFaceCheckpoint, write_checkpoint
from kvik.checkpoint.families import read_spec
from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.formats.safetensors import SafetensorsFile
from kvik.checkpoint.formats.shards import open_weights
from kvik.errors import CheckpointError

FUZZ = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MEMORY_LIMIT = 64 << 20

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def opens_or_is_refused(action: Callable[[], object]) -> bool:
    """Whether it opened; any exception but a CheckpointError, and any waste of memory, fails the test."""
    message = ""
    tracemalloc.start()
    try:
        action()
    except CheckpointError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY_LIMIT
    assert len(message) < 2000
    return not message


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small written model."""
    directory = tmp_path_factory.mktemp("model")
    write_checkpoint(DummyCheckpoint("tiny-qwen3"), directory, max_shard_bytes=100_000)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def open_all(directory: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(directory)
    for name in checkpoint.spec.tensor_shapes():
        checkpoint.tensor(name).data.sum()
        checkpoint.release(name)


def place(directory: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (directory / name).write_bytes(data)


@FUZZ
@given(data=st.data())
def test_flipped_bits_and_cut_ends(data: st.DataObject, model: dict[str, bytes], tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(sorted(model)))
    damaged = bytearray(model[name])
    header = min(len(damaged), 6000)
    for at in data.draw(st.lists(st.integers(0, header * 8 - 1), max_size=4)):
        damaged[at // 8] ^= 1 << at % 8
    cut = data.draw(st.none() | st.integers(0, len(damaged)))
    place(tmp_path, {**model, name: bytes(damaged[:cut])})
    opened = opens_or_is_refused(lambda: open_all(tmp_path))
    assert not opened or cut is None or cut == len(damaged) or name == "config.json"


@FUZZ
@given(payload=st.binary(max_size=200), length=st.integers(0, 2**64 - 1) | st.integers(0, 200))
def test_random_bytes_behind_any_length(payload: bytes, length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + payload)
    opens_or_is_refused(lambda: SafetensorsFile(path))


NUMBERS = st.integers(-3, 40) | st.sampled_from([2**31, 2**32, 2**63, 2**64 - 1, 10**30, 1.5, True, None, "4"])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I64", "F4", "f32", "", None, 7]),
        "shape": st.lists(NUMBERS, max_size=4) | NUMBERS,
        "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3) | NUMBERS,
    }
)


@FUZZ
@given(header=st.dictionaries(st.sampled_from("abcd"), ENTRY | JSON, max_size=4), size=st.integers(0, 64))
@example(header={"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, size=8)
@example(header={"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}, size=0)
def test_headers_that_lie(header: dict[str, Any], size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))

    def read_everything() -> None:
        file = SafetensorsFile(path)
        covered = sum(entry.end - entry.start for entry in file.entries.values())
        assert covered == size
        for name in file.entries:
            assert file.array(name).nbytes <= size

    opens_or_is_refused(read_everything)


@FUZZ
@given(spans=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4))
def test_spans_that_do_not_tile_the_data_never_open(spans: list[tuple[int, int]], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {
        str(at): {"dtype": "F16", "shape": [max(end - begin, 0)], "data_offsets": [2 * begin, 2 * end]}
        for at, (begin, end) in enumerate(spans)
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    covered = sorted(cell for begin, end in spans for cell in range(begin, end))
    tiles = covered == list(range(6)) and all(begin <= end for begin, end in spans)
    opened = opens_or_is_refused(lambda: SafetensorsFile(path))
    assert tiles or not opened


def test_a_header_of_a_million_brackets_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for text in (b"[" * 1_000_000, b'{"a":' * 300_000, b"9" * 1_000_000):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        assert not opens_or_is_refused(lambda: SafetensorsFile(path))


@FUZZ
@given(weight_map=st.dictionaries(st.text(max_size=6), st.text(max_size=24) | JSON, max_size=4) | JSON)
@example(weight_map={"a": "../../etc/passwd"})
@example(weight_map={"a": "\0.safetensors"})
@example(weight_map={"a": "\ud800.safetensors"})
@example(weight_map={"a": "x" * 300 + ".safetensors"})
def test_any_index(weight_map: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert not opens_or_is_refused(lambda: open_weights(tmp_path))


@FUZZ
@given(data=st.data())
def test_any_config(data: st.DataObject, model: dict[str, bytes]) -> None:
    values = json.loads(model["config.json"])
    names = [*values, "rope_parameters", "quantization_config", "num_experts", "attention_bias"]
    changes = data.draw(st.dictionaries(st.sampled_from(names), JSON | NUMBERS, max_size=3))
    opens_or_is_refused(lambda: read_spec(Fields("config.json", {**values, **changes})))


@FUZZ
@given(scaling=st.dictionaries(st.text(max_size=4), NUMBERS) | JSON, kind=st.sampled_from(["linear", "llama3", "yarn"]))
def test_any_rope_scaling(scaling: object, kind: str, model: dict[str, bytes]) -> None:
    factors = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    table = {"rope_type": kind, **factors, **scaling} if isinstance(scaling, dict) else scaling
    values = {**json.loads(model["config.json"]), "rope_scaling": table}
    opens_or_is_refused(lambda: read_spec(Fields("config.json", values)).rope.inv_freq(16))


YARN = (
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "rope_theta",
)


@FUZZ
@given(changes=st.dictionaries(st.sampled_from(YARN), NUMBERS | st.floats(1e-9, 1e9)), truncate=st.booleans())
def test_any_yarn_gives_finite_frequencies_or_is_refused(changes: dict[str, Any], truncate: bool) -> None:
    from kvik.checkpoint.families.rope import read_rope

    table = {"rope_type": "yarn", "factor": 4.0, "truncate": truncate, **changes}
    fields = Fields("config.json", {"max_position_embeddings": 4096, "rope_scaling": table})

    def frequencies() -> None:
        rope = read_rope(fields)
        for head_dim in (2, 64):
            values = rope.inv_freq(head_dim)
            assert ((values >= 0) & (values <= 1e9)).all()

    opens_or_is_refused(frequencies)
