"""What a config may ask for and Kvik does not do: one table, one refusal by name.

A field that changes the mathematics and is not read by a family belongs here, so that a model is refused before its
weights are read instead of answering nonsense. Fields that change nothing (dropout, initialisation, caches, notes of
the training) are not looked at.
"""

from __future__ import annotations

from typing import Any

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.quantization import read_layout

_OFF: tuple[Any, ...] = (None, False)
_NONE: tuple[Any, ...] = (None, 0, {}, [])
_ONE: tuple[Any, ...] = (None, 1)

SUPPORTED: tuple[tuple[tuple[Any, ...], str, tuple[str, ...]], ...] = (
    (("silu",), "silu", ("hidden_act",)),
    (_OFF, "no bias in the MLP", ("mlp_bias",)),
    (_NONE, "quantized weights described by quantization_config", ("compression_config",)),
    (_ONE, "1", ("pretraining_tp",)),
    (_ONE, "1 (all of a head is rotated)", ("partial_rotary_factor", "rotary_pct")),
    (_OFF, "halves of a head rotated", ("rope_interleaved", "rope_interleave")),
    (_OFF, "one-dimensional positions", ("use_mrope",)),
    (_OFF, "rotary positions", ("alibi", "use_alibi")),
    (_NONE, "rotary positions in every layer", ("no_rope_layers", "no_rope_layer_interval")),
    ((None,), "no softcapping", ("attn_logit_softcapping", "final_logit_softcapping")),
    (
        _NONE,
        "dense layers (no experts)",
        (
            *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok"),
            *("moe_intermediate_size", "n_shared_experts", "mlp_layer_types"),
        ),
    ),
    (_OFF, "attention without gates", ("attn_output_gate", "attention_output_gate", "use_attention_gate")),
    (_OFF, "attention without gates", ("headwise_attn_output_gate", "elementwise_attn_output_gate")),
    (
        _ONE,
        "1 (no scaling of activations or logits)",
        ("logit_scale", "logits_scaling", "embedding_multiplier", "residual_multiplier", "scale_emb"),
    ),
    ((None,), "attention scaled by head_dim ** -0.5", ("attention_multiplier", "query_pre_attn_scalar")),
    (_NONE, "plain grouped-query attention", ("kv_lora_rank", "q_lora_rank", "clip_qkv", "attention_chunk_size")),
    (_NONE, "plain grouped-query attention", ("dual_chunk_attention_config",)),
    (_NONE, "one shape for all layers", ("per_layer_config", "block_configs")),
    (_NONE, "one token per step", ("num_nextn_predict_layers",)),
    (_OFF, "decoder-only models", ("is_encoder_decoder", "add_cross_attention")),
    (_NONE, "text-only models", ("vision_config", "audio_config", "text_config")),
)
"""Accepted values, what is supported in words, and the fields this holds for. A missing field is always accepted."""


def check_supported(fields: Fields) -> None:
    """Raises UnsupportedModelError for the first field that asks for something Kvik does not do, be it in its
    `quantization_config`; CheckpointError if that contradicts itself.
    """
    for accepted, supported, names in SUPPORTED:
        for name in names:
            if name in fields and not any(_equal(fields.get(name), value) for value in accepted):
                raise fields.unsupported(name, supported)
    read_layout(fields)


def _equal(value: object, accepted: object) -> bool:
    """Equality in which true is not 1."""
    return isinstance(value, bool) == isinstance(accepted, bool) and value == accepted
