"""Llama 2 and 3: the plain decoder; `attention_bias` puts a bias on all four projections of attention.

Llama has no sliding window; a config that states one is refused, because readers disagree on what it would mean.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvik.checkpoint.families.decoder import (
    LAYER_NAMES,
    O_BIAS_NAMES,
    QKV_BIAS_NAMES,
    Family,
    read_decoder,
    write_decoder,
)
from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.spec import DecoderSpec


def read(fields: Fields) -> DecoderSpec:
    """The spec a Llama config describes. Raises CheckpointError, UnsupportedModelError."""
    if fields.get("sliding_window") is not None:
        raise fields.unsupported("sliding_window", "no sliding window in Llama")
    if set(fields.strings("layer_types") or ()) - {"full_attention"}:
        raise fields.unsupported("layer_types", "full_attention")
    spec = read_decoder(fields, "llama", kv_heads=None, bos=1, eos=2)
    bias = fields.flag("attention_bias", False)
    return replace(spec, qkv_bias=bias, o_bias=bias)


def write(spec: DecoderSpec) -> dict[str, Any]:
    """The config fields of this spec."""
    return {**write_decoder(spec), "attention_bias": spec.qkv_bias, "mlp_bias": False}


LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    read=read,
    write=write,
    layer_names=LAYER_NAMES | QKV_BIAS_NAMES | O_BIAS_NAMES,
)
