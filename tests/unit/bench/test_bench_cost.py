"""The cost model against figures worked out by hand for Qwen3-0.6B."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvik.bench.cost import Cost, Forms
from kvik.bench.decode import mean_bytes_per_token
from kvik.bench.prefill import PrefillWorkload, flops_per_token, peak_of_form
from kvik.checkpoint import DummyCheckpoint, open_checkpoint, write_gguf
from kvik.checkpoint.dummy import DUMMIES
from kvik.config import EngineConfig

QWEN = DUMMIES["qwen3-0.6b"]
BF16 = Cost(QWEN, Forms("bf16", "bf16"))
LAYER = 1024 * (2048 + 1024 + 1024) + 2048 * 1024 + 3 * 1024 * 3072
"""Matrix weights of one layer: q, k, v, o, gate, up, down."""
NORMS = 28 * (2 * 1024 + 2 * 128) + 1024
HEAD = 151936 * 1024


def test_auto_forms_follow_the_checkpoint() -> None:
    assert Forms.resolve(QWEN, "auto", "auto") == Forms("bf16", "bf16")
    assert Forms.resolve(replace(QWEN, dtype="f16"), "auto", "auto") == Forms("bf16", "bf16")
    assert Forms.resolve(replace(QWEN, dtype="f32"), "auto", "auto") == Forms("f32", "f32")
    assert Forms.resolve(replace(QWEN, dtype="f32"), "bf16", "f32") == Forms("bf16", "f32")


def test_keys_and_values_beside_quantized_weights_are_bf16() -> None:
    assert Forms.resolve(QWEN, "int4", "auto") == Forms("int4", "bf16")
    assert Forms.resolve(replace(QWEN, dtype="f32"), "int8", "auto") == Forms("int8", "bf16")
    assert Forms.resolve(QWEN, "auto", "int8") == Forms("bf16", "int8")


def test_a_tied_head_is_streamed_once() -> None:
    assert LAYER == 15_728_640
    assert BF16.streamed_weight_bytes() == BF16.weight_bytes() == 2 * (28 * LAYER + NORMS + HEAD)


def test_an_untied_embedding_is_held_but_not_streamed() -> None:
    cost = Cost(replace(QWEN, tied_head=False), Forms("f32", "f32"))
    assert cost.weight_bytes() == 4 * (28 * LAYER + NORMS + 2 * HEAD)
    assert cost.streamed_weight_bytes() == 4 * (28 * LAYER + NORMS + HEAD)


def test_scales_are_streamed_with_the_weights() -> None:
    rows = 28 * (2048 + 3 * 1024 + 2 * 3072 + 1024)
    eight = Cost(replace(QWEN, tied_head=False), Forms("int8", "int8"))
    assert eight.streamed_weight_bytes() == 28 * LAYER + HEAD + 4 * (rows + 151936) + 4 * NORMS
    assert Cost(QWEN, Forms("int4", "int8")).streamed_weight_bytes() == (28 * LAYER + HEAD) * 19 // 32 + 4 * NORMS
    assert eight.kv_bytes_per_token() == 28 * 8 * 2 * (128 + 4)


def test_larger_groups_stream_fewer_scales() -> None:
    wide = Cost(QWEN, Forms.resolve(QWEN, "int4", "auto", 128))
    assert wide.streamed_weight_bytes() == (28 * LAYER + HEAD) * 67 // 128 + 4 * NORMS


def test_quantized_weights_cost_what_they_are_held_in(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", DummyCheckpoint("tiny-qwen2"), "Q8_0")
    opened, asked = open_checkpoint(str(tmp_path / "m.gguf")), EngineConfig.from_options(model="m.gguf")
    cost = Cost(opened.spec, Forms.of_checkpoint(opened, asked, "native"))
    # Rows of 96 are 3 groups; the 307 of embedding and head are padded to 320. down's 168 inputs are no blocks.
    eight = (2 * 320 + 2 * (96 + 2 * 32 + 96 + 2 * 192)) * (96 + 3 * 4)
    plain = 2 * (2 * 96 * 168 + 2 * (2 * 96 + 96 + 2 * 32) + 96)
    assert cost.forms.label == "bytes"
    assert cost.weight_bytes() == eight + plain
    assert cost.streamed_weight_bytes() == eight + plain - 320 * (96 + 3 * 4)
    assert Forms.of_checkpoint(opened, asked, "reference") == Forms("f32", "f32")


def test_kv_of_a_token() -> None:
    assert BF16.kv_bytes_per_token() == 114_688
    assert Cost(QWEN, Forms("bf16", "f32")).kv_bytes_per_token() == 2 * 114_688


def test_a_decode_step_reads_weights_once_and_each_sequence_once() -> None:
    assert BF16.decode_bytes([100, 200]) == BF16.streamed_weight_bytes() + 300 * 114_688


def test_a_sliding_window_bounds_what_is_read() -> None:
    cost = Cost(replace(QWEN, sliding_window=(0,) * 14 + (16,) * 14), Forms("bf16", "bf16"))
    assert cost.attended(10) == 28 * 10
    assert cost.attended(100) == 14 * 100 + 14 * 16


def test_bytes_per_token_average_over_the_steps() -> None:
    by_hand = (BF16.streamed_weight_bytes() + 2 * 114_688 * (101 + 102) / 2) / 2
    assert mean_bytes_per_token(BF16, 2, 100, 2) == pytest.approx(by_hand)


def test_prefill_operations() -> None:
    attention = 4 * 16 * 128 * 28
    assert BF16.prefill_flops(0, 3) == 3 * 2 * 28 * LAYER + attention * (1 + 2 + 3)
    assert BF16.prefill_flops(2, 3, sampled=1) == 2 * 28 * LAYER + attention * 3 + 2 * HEAD
    assert flops_per_token(BF16, PrefillWorkload(4, 512)) == pytest.approx(481e9 / 512, rel=0.01)


def test_chunks_of_a_prompt_cost_what_the_prompt_costs() -> None:
    assert BF16.prefill_flops(0, 7) + BF16.prefill_flops(7, 20) == BF16.prefill_flops(0, 20)


def test_the_peak_that_bounds_a_form() -> None:
    peaks = {"bf16": 2.0, "f32": 3.0, "int8": 9.0}
    assert peak_of_form(peaks, "f32") == 3.0
    assert peak_of_form(peaks, "bf16") == 3.0
    assert peak_of_form({**peaks, "bf16": 5.0}, "bf16") == 5.0
    assert peak_of_form(peaks, "int8") == peak_of_form(peaks, "int4") == 9.0
    assert peak_of_form({"f32": 3.0, "bf16": 5.0}, "int4") == 5.0
