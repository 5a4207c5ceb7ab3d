"""Qwen3: norms on every query and key head; biases only where `attention_bias` says so, then on the output too.

head_dim is stated, not derived: it need not be hidden_size / num_attention_heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvik.checkpoint.families.decoder import (
    LAYER_NAMES,
    O_BIAS_NAMES,
    QK_NORM_NAMES,
    QKV_BIAS_NAMES,
    Family,
    read_decoder,
    read_layer_windows,
    write_decoder,
    write_layer_windows,
)
from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.spec import DecoderSpec


def read(fields: Fields) -> DecoderSpec:
    """The spec a Qwen3 config describes. Raises CheckpointError, UnsupportedModelError."""
    spec = read_decoder(fields, "qwen3", kv_heads=32, head_dim=128)
    bias = fields.flag("attention_bias", False)
    windows = read_layer_windows(fields, spec.num_layers)
    return replace(spec, qk_norm=True, qkv_bias=bias, o_bias=bias, sliding_window=windows)


def write(spec: DecoderSpec) -> dict[str, Any]:
    """The config fields of this spec."""
    return {**write_decoder(spec), **write_layer_windows(spec), "attention_bias": spec.qkv_bias}


QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    read=read,
    write=write,
    layer_names=LAYER_NAMES | QK_NORM_NAMES | QKV_BIAS_NAMES | O_BIAS_NAMES,
)
