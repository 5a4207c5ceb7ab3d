"""Qwen2 and Qwen2.5: a bias on queries, keys and values, always; none on the output."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvik.checkpoint.families.decoder import (
    LAYER_NAMES,
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
    """The spec a Qwen2 config describes. Raises CheckpointError, UnsupportedModelError."""
    spec = read_decoder(fields, "qwen2", kv_heads=32)
    return replace(spec, qkv_bias=True, sliding_window=read_layer_windows(fields, spec.num_layers))


def write(spec: DecoderSpec) -> dict[str, Any]:
    """The config fields of this spec."""
    return {**write_decoder(spec), **write_layer_windows(spec)}


QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    read=read,
    write=write,
    layer_names=LAYER_NAMES | QKV_BIAS_NAMES,
)
