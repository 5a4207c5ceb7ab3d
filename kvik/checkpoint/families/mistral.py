"""Mistral: no biases; one sliding window for all layers, or none where `sliding_window` is null.

A missing `sliding_window` means 4096, as in Mistral's first release. Layers that differ (`layer_types`) are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvik.checkpoint.families.decoder import LAYER_NAMES, Family, read_decoder, write_decoder
from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.spec import DecoderSpec


def read(fields: Fields) -> DecoderSpec:
    """The spec a Mistral config describes. Raises CheckpointError, UnsupportedModelError."""
    spec = read_decoder(fields, "mistral", kv_heads=8, bos=1, eos=2)
    window = fields.whole_or_none("sliding_window", 1, 2**31 - 1, 4096)
    everywhere = "full_attention" if window is None else "sliding_attention"
    if set(fields.strings("layer_types") or ()) - {everywhere}:
        raise fields.unsupported("layer_types", f"{everywhere} in every layer, as sliding_window says")
    return replace(spec, sliding_window=() if window is None else (window,) * spec.num_layers)


def write(spec: DecoderSpec) -> dict[str, Any]:
    """The config fields of this spec."""
    return {**write_decoder(spec), "sliding_window": spec.window(0) or None}


MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    read=read,
    write=write,
    layer_names=LAYER_NAMES,
)
