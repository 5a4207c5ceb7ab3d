"""What llama.cpp calls the weights of a decoder, and the order in which it keeps the rows of two of them.

In models of its `llama` architecture a head's rows of q and k lie in pairs that are rotated together (i, i + d/2 of
`DecoderSpec` are 2i, 2i + 1 there); in those of `qwen2` and `qwen3` they lie as here. This file knows nothing of
files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.spec import DecoderSpec

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies; how GGUF says Llama 3's stretching."""
MODEL_NAMES = {"embed": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight"}
LAYER_NAMES = {
    "attn_norm": "attn_norm.weight",
    **{part: f"attn_{part}.weight" for part in "qkv"},
    "o": "attn_output.weight",
    **{f"{part}_bias": f"attn_{part}.bias" for part in "qkv"},
    "o_bias": "attn_output.bias",
    **{f"{part}_norm": f"attn_{part}_norm.weight" for part in "qk"},
    "mlp_norm": "ffn_norm.weight",
    **{part: f"ffn_{part}.weight" for part in ("gate", "up", "down")},
}
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's architecture of each family."""


def gguf_name(canonical: str) -> str:
    """The name in the file of a canonical name (`DecoderSpec.tensor_shapes`). Raises KeyError for no such name."""
    if canonical in MODEL_NAMES:
        return MODEL_NAMES[canonical]
    _, layer, part = canonical.split(".")
    return f"blk.{layer}.{LAYER_NAMES[part]}"


def heads_in_pairs(spec: DecoderSpec, canonical: str) -> int:
    """How many heads of this weight lie in rotated pairs; 0 where rows lie as in `DecoderSpec`."""
    if ARCHITECTURES[spec.family] != "llama":
        return 0
    part = canonical.rpartition(".")[2].removesuffix("_bias")
    return {"q": spec.num_heads, "k": spec.num_kv_heads}.get(part, 0)


def rows_from_pairs(heads: int, head_dim: int) -> NDArray[np.intp]:
    """Which of the file's rows each row is: `here = file[rows]`."""
    rows: NDArray[np.intp] = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    return rows


def rows_to_pairs(heads: int, head_dim: int) -> NDArray[np.intp]:
    """The inverse: `file = here[rows]`."""
    rows: NDArray[np.intp] = np.arange(heads * head_dim).reshape(heads, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)
    return rows
