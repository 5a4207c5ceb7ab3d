"""What all families share: the sizes of a decoder, its sliding windows, its tensor names.

A family's file calls `read_decoder` and then states its differences. Limits are generous for real models and small
enough that no product of them is dangerous. This file knows nothing of any one family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.families.rope import read_rope, write_rope
from kvik.checkpoint.spec import DecoderSpec

_LONGEST = 2**31 - 1
MAX_VOCAB = 2**24

MODEL_NAMES = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm.weight",
    **{part: f"self_attn.{part}_proj.weight" for part in "qkvo"},
    "mlp_norm": "post_attention_layernorm.weight",
    **{part: f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
}
QKV_BIAS_NAMES = {f"{part}_bias": f"self_attn.{part}_proj.bias" for part in "qkv"}
O_BIAS_NAMES = {"o_bias": "self_attn.o_proj.bias"}
QK_NORM_NAMES = {f"{part}_norm": f"self_attn.{part}_norm.weight" for part in "qk"}


@dataclass(frozen=True)
class Family:
    """How one family is spelled in a Hugging Face directory."""

    name: str
    """`model_type` in config.json."""
    architecture: str
    """`architectures[0]` in config.json."""
    read: Callable[[Fields], DecoderSpec]
    write: Callable[[DecoderSpec], dict[str, Any]]
    layer_names: dict[str, str]
    """Canonical name within a layer to the name after `model.layers.N.`."""

    def tensor_name(self, canonical: str) -> str:
        """The name in the file of a canonical name (`DecoderSpec.tensor_shapes`)."""
        if canonical in MODEL_NAMES:
            return MODEL_NAMES[canonical]
        _, layer, part = canonical.split(".")
        return f"model.layers.{layer}.{self.layer_names[part]}"


def read_decoder(
    fields: Fields,
    family: str,
    *,
    kv_heads: int | None,
    head_dim: int | None = None,
    bos: int | None = None,
    eos: int | None = None,
) -> DecoderSpec:
    """The fields every family has. Keywords are the family's defaults; None is derived: `num_attention_heads` for
    kv_heads, `hidden_size / num_attention_heads` for head_dim, no token for bos and eos.
    """
    hidden = fields.whole("hidden_size", 1, 2**20)
    heads = fields.whole("num_attention_heads", 1, 2**16)
    vocab = fields.whole("vocab_size", 1, MAX_VOCAB)
    rope = read_rope(fields)
    return DecoderSpec(
        family=family,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=fields.whole("intermediate_size", 1, 2**22),
        num_layers=fields.whole("num_hidden_layers", 1, 4096),
        num_heads=heads,
        num_kv_heads=_kv_heads(fields, heads, kv_heads),
        head_dim=_head_dim(fields, hidden, heads, head_dim),
        rms_norm_eps=fields.number("rms_norm_eps", 0, 1, 1e-6),
        rope=rope,
        max_position=_max_position(fields, int(rope.original_max_position * rope.factor), rope.kind),
        tied_head=fields.flag("tie_word_embeddings", False),
        bos_id=fields.whole_or_none("bos_token_id", 0, vocab - 1, bos),
        eos_ids=read_eos(fields, vocab, eos),
    )


def _kv_heads(fields: Fields, heads: int, default: int | None) -> int:
    kv_heads = fields.whole_or_none("num_key_value_heads", 1, 2**16, default) or heads
    if heads % kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads, which is {heads}")
    return kv_heads


def _head_dim(fields: Fields, hidden: int, heads: int, default: int | None) -> int:
    if default is not None:
        value: int | None = fields.whole("head_dim", 2, 8192, default)
    else:
        value = fields.whole_or_none("head_dim", 2, 8192, None)
    if value is None and hidden % heads:
        raise fields.wrong("num_attention_heads", f"a divisor of hidden_size, which is {hidden}, or a head_dim")
    head_dim = hidden // heads if value is None else value
    if head_dim % 2:
        raise fields.wrong("head_dim", f"an even number (it comes to {head_dim})")
    return head_dim


def _max_position(fields: Fields, stretched: int, kind: str) -> int:
    """A yarn config may state the length before stretching only; all others state the length after it."""
    stated = fields.whole("max_position_embeddings", 1, _LONGEST)
    return min(max(stated, stretched), _LONGEST) if kind == "yarn" else stated


def read_eos(fields: Fields, vocab: int, default: int | None) -> tuple[int, ...]:
    """Ids of the end tokens: one, a list, or none."""
    value = fields.values.get("eos_token_id", default)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token < vocab for token in ids):
        raise fields.wrong("eos_token_id", f"a token id from 0 to {vocab - 1}, or a list of them")
    return tuple(dict.fromkeys(ids))


def read_layer_windows(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """The Qwen way to say which layers slide: `layer_types`, or all from `max_window_layers` on.

    The config's window counts the token itself (position p sees p - window + 1 .. p), as `DecoderSpec` does.
    """
    window = None
    if fields.flag("use_sliding_window", False):
        window = fields.whole_or_none("sliding_window", 1, _LONGEST, 4096)
    types = fields.strings("layer_types")
    if types is not None:
        slides = _read_layer_types(fields, types, num_layers)
    elif window is not None:
        first = fields.whole("max_window_layers", 0, _LONGEST, 28)
        slides = [layer >= first for layer in range(num_layers)]
    else:
        slides = []
    if any(slides) and window is None:
        raise fields.wrong("layer_types", "no sliding_attention without use_sliding_window and sliding_window")
    return tuple((window or 0) if slide else 0 for slide in slides) if any(slides) else ()


def _read_layer_types(fields: Fields, types: tuple[str, ...], num_layers: int) -> list[bool]:
    if not set(types) <= {"full_attention", "sliding_attention"}:
        raise fields.unsupported("layer_types", "full_attention, sliding_attention")
    if len(types) != num_layers:
        raise fields.wrong("layer_types", f"one entry for each of num_hidden_layers, which is {num_layers}")
    return [kind == "sliding_attention" for kind in types]


def write_layer_windows(spec: DecoderSpec) -> dict[str, Any]:
    """The config fields that `read_layer_windows` reads back to this spec."""
    windows = [spec.window(layer) for layer in range(spec.num_layers)]
    return {
        "use_sliding_window": any(windows),
        "sliding_window": max(windows) or None,
        "max_window_layers": spec.num_layers,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }


def write_decoder(spec: DecoderSpec) -> dict[str, Any]:
    """The config fields that `read_decoder` reads back to this spec."""
    dtype = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[spec.dtype]
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": spec.rms_norm_eps,
        "max_position_embeddings": spec.max_position,
        "tie_word_embeddings": spec.tied_head,
        "bos_token_id": spec.bos_id,
        "eos_token_id": list(spec.eos_ids) if len(spec.eos_ids) > 1 else next(iter(spec.eos_ids), None),
        "torch_dtype": dtype,
        **write_rope(spec.rope),
    }
