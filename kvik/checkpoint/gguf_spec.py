"""The metadata of a GGUF file as a DecoderSpec, and back.

Keys are `ARCHITECTURE.something`; what they ask for and Kvik does not do is refused by name, in the way of
`families/refuse.py`. Numbers are stored as float32 there: 1e-5 is read as 1e-5, the shortest number that is stored so.
Which weights there are decides the rest: biases, norms of heads, a head of its own. This file knows nothing of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from kvik.checkpoint.families.decoder import MAX_VOCAB
from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.files import shown
from kvik.checkpoint.gguf_names import ARCHITECTURES
from kvik.checkpoint.gguf_rope import read_rope, write_rope
from kvik.checkpoint.spec import DecoderSpec
from kvik.errors import CheckpointError
from kvik.step import Float32

_LONGEST = 2**31 - 1
_NONE: tuple[Any, ...] = (0, False)
_REFUSED: tuple[tuple[tuple[Any, ...], str, tuple[str, ...]], ...] = (
    (_NONE, "dense layers (no experts)", ("expert_count", "expert_used_count", "expert_shared_count")),
    (_NONE, "no sliding window", ("attention.sliding_window", "attention.sliding_window_pattern")),
    (_NONE, "no softcapping", ("attn_logit_softcapping", "final_logit_softcapping")),
    ((True, 1), "causal attention", ("attention.causal",)),
    (_NONE, "rotary positions", ("attention.max_alibi_bias", "attention.alibi_bias_max")),
    (
        _NONE,
        "plain grouped-query attention",
        ("attention.clamp_kqv", "attention.kv_lora_rank", "attention.q_lora_rank"),
    ),
    (_NONE, "attention scaled by head_dim ** -0.5", ("attention.scale",)),
    ((0, 1), "1 (no scaling of activations or logits)", ("logit_scale", "residual_scale", "embedding_scale")),
    (_NONE, "one attention after another", ("use_parallel_residual",)),
    (_NONE, "text-only models", ("deepstack_layers", "rope.dimension_sections")),
    (_NONE, "one token per step", ("nextn_predict_layers",)),
    (_NONE, "an answer token by token", ("pooling_type",)),
)
"""Accepted values, what is supported in words, and the keys this holds for, as in `families/refuse.py`."""


def read_gguf_spec(
    file: str, metadata: dict[str, Any], names: Collection[str], vocab: int, factors: Callable[[], Float32 | None]
) -> DecoderSpec:
    """The spec of a file with these tensors; `vocab` is how many rows its embedding has, `factors` reads the divisors
    of the rotary frequencies if it has any. `dtype` and `eos_ids` beyond the named one are left for the caller.

    Raises CheckpointError, UnsupportedModelError.
    """
    general = Fields(file, metadata)
    architecture = general.get("general.architecture")
    known = sorted(set(ARCHITECTURES.values()))
    if not isinstance(architecture, str):
        raise general.wrong("general.architecture", f"one of {', '.join(known)}")
    if architecture not in known:
        raise general.unsupported("general.architecture", ", ".join(known))
    prefix = f"{architecture}."
    own = {key[len(prefix) :]: _shortest(value) for key, value in metadata.items() if key.startswith(prefix)}
    fields = Fields(file, own, prefix)
    _check_supported(fields)
    if fields.whole("vocab_size", 1, MAX_VOCAB, vocab) != vocab:
        raise fields.wrong("vocab_size", f"{vocab}, the rows of token_embd.weight")
    return _read(fields, general, architecture, names, vocab, factors)


def _read(
    fields: Fields,
    general: Fields,
    architecture: str,
    names: Collection[str],
    vocab: int,
    factors: Callable[[], Float32 | None],
) -> DecoderSpec:
    heads, kv_heads, head_dim = _heads(fields)
    context = fields.whole("context_length", 1, _LONGEST)
    rope = read_rope(fields, head_dim, context, factors)
    stretched = int(rope.original_max_position * rope.factor) if rope.kind == "yarn" else 0
    return DecoderSpec(
        family=architecture,
        vocab_size=vocab,
        hidden_size=fields.whole("embedding_length", 1, 2**20),
        intermediate_size=_same_everywhere(fields, "feed_forward_length", 2**22),
        num_layers=fields.whole("block_count", 1, 4096),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon", 0, 1),
        rope=rope,
        max_position=min(max(context, stretched), _LONGEST),
        qkv_bias=architecture == "qwen2" or "blk.0.attn_q.bias" in names,
        o_bias="blk.0.attn_output.bias" in names,
        qk_norm=architecture == "qwen3",
        tied_head="output.weight" not in names,
        bos_id=general.whole_or_none("tokenizer.ggml.bos_token_id", 0, vocab - 1, None),
        eos_ids=_eos(general, vocab),
    )


def _shortest(value: Any) -> Any:
    """A float32 as the number it was made from, as far as that can be told."""
    if type(value) is float and np.isfinite(value) and abs(value) < 3e38 and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value


def _check_supported(fields: Fields) -> None:
    for accepted, supported, names in _REFUSED:
        for name in names:
            if name in fields and (isinstance(fields.get(name), np.ndarray) or fields.get(name) not in accepted):
                raise fields.unsupported(name, supported)


def _same_everywhere(fields: Fields, name: str, high: int) -> int:
    """A whole number, or one for each layer as long as they are all the same."""
    values = fields.get(name)
    if isinstance(values, np.ndarray):
        if not len(values) or values.dtype.kind not in "iu" or (values != values[0]).any():
            raise fields.unsupported(name, "one shape for all layers")
        fields = Fields(fields.file, {name: int(values[0])}, fields.prefix)
    return fields.whole(name, 1, high)


def _heads(fields: Fields) -> tuple[int, int, int]:
    """Heads, KV heads and the size of one."""
    heads = _same_everywhere(fields, "attention.head_count", 2**16)
    stated = "attention.head_count_kv" in fields
    kv_heads = _same_everywhere(fields, "attention.head_count_kv", 2**16) if stated else heads
    if heads % kv_heads:
        raise fields.wrong("attention.head_count_kv", f"a divisor of attention.head_count, which is {heads}")
    hidden = fields.whole("embedding_length", 1, 2**20)
    if "attention.key_length" not in fields and hidden % heads:
        raise fields.wrong("attention.head_count", f"a divisor of embedding_length, which is {hidden}")
    head_dim = fields.whole("attention.key_length", 2, 8192, hidden // heads)
    if head_dim % 2:
        raise fields.wrong("attention.key_length", f"an even number (it comes to {head_dim})")
    for name, expected in (("attention.value_length", "as long as a key"), ("rope.dimension_count", "all of a head")):
        if fields.whole(name, 1, 8192, head_dim) != head_dim:
            raise fields.unsupported(name, f"{head_dim} ({expected})")
    return heads, kv_heads, head_dim


def _eos(general: Fields, vocab: int) -> tuple[int, ...]:
    names = [f"tokenizer.ggml.{role}_token_id" for role in ("eos", "eot", "eom")]
    ids = [general.whole_or_none(name, 0, vocab - 1, None) for name in names]
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def write_gguf_spec(spec: DecoderSpec, file: str) -> tuple[dict[str, Any], Float32 | None]:
    """The metadata that `read_gguf_spec` reads back to this spec, and the divisors of the rotary frequencies if any.
    Raises CheckpointError naming what GGUF cannot say.
    """
    if spec.family not in ARCHITECTURES:
        raise CheckpointError(f"family is {shown(spec.family)}; expected one of {', '.join(ARCHITECTURES)}")
    if any(spec.sliding_window):
        raise CheckpointError(f"{file}: sliding_window is {max(spec.sliding_window)}, which GGUF cannot say here")
    architecture = ARCHITECTURES[spec.family]
    scaling, factors = write_rope(spec.rope, spec.head_dim)
    own = {
        "vocab_size": spec.vocab_size,
        "context_length": spec.max_position,
        "embedding_length": spec.hidden_size,
        "block_count": spec.num_layers,
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.num_heads,
        "attention.head_count_kv": spec.num_kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "attention.layer_norm_rms_epsilon": float(spec.rms_norm_eps),
        "rope.dimension_count": spec.head_dim,
        **scaling,
    }
    return {f"{architecture}.{name}": value for name, value in own.items()}, factors
