"""The models of a comparison: what they take on disk and in memory, and that all of them are freed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvik.bench import judge_sides
from kvik.bench.judge_operands import parse_operands
from kvik.bench.judge_sides import disk_bytes, open_sides, peak_since, reset_peak
from kvik.checkpoint import open_checkpoint, write_checkpoint, write_gguf

MODEL = "dummy:tiny-llama"
BASE = {"backend": "reference"}


def test_disk_bytes_are_those_of_the_files_with_weights(tmp_path: Path) -> None:
    dummy = open_checkpoint(MODEL)
    write_checkpoint(dummy, tmp_path / "hf")
    write_gguf(tmp_path / "model.gguf", dummy)
    (tmp_path / "hf" / "tokenizer.json").write_text("{}")
    stored = (tmp_path / "hf" / "model.safetensors").stat().st_size
    assert disk_bytes(open_checkpoint(str(tmp_path / "hf"))) == stored
    assert disk_bytes(open_checkpoint(str(tmp_path / "model.gguf"))) == (tmp_path / "model.gguf").stat().st_size
    assert disk_bytes(dummy) is None


def test_the_peak_counts_what_was_freed_again() -> None:
    before = reset_peak()
    if before is None:
        pytest.skip("the system does not say")
    np.ones(64 << 20, np.uint8).sum()
    peak = peak_since(before)
    assert peak is not None
    assert peak > 60 << 20
    assert peak_since(reset_peak()) == pytest.approx(0, abs=8 << 20)


def test_where_the_system_does_not_say_there_is_no_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(judge_sides, "PROC", tmp_path / "nothing")
    assert reset_peak() is None
    assert peak_since(None) is None
    assert peak_since(1) is None


def test_memory_parts_sum_to_the_whole_and_all_is_freed() -> None:
    with open_sides(parse_operands([MODEL, MODEL], BASE)) as sides:
        for side in sides:
            side.allocate(64)
            memory = side.memory_bytes()
            assert memory["total"] == memory["weights"] + memory["kv"] + memory["activations"]
            assert memory["kv"] == 64 * side.bench.runner.kv_bytes_per_token()
    for side in sides:
        with pytest.raises(RuntimeError, match="has no model"):
            side.allocate(64)


def test_logits_after_feeding_are_those_of_the_whole() -> None:
    with open_sides(parse_operands([MODEL, MODEL], BASE)) as (one, other):
        ids, layouts = np.arange(20, dtype=np.int32), [one.allocate(32), other.allocate(32)]
        whole = one.logits(layouts[0], ids, 0)
        other.feed(layouts[1], ids[:13], 0)
        assert (other.logits(layouts[1], ids[13:], 13) == whole[13:]).all()
