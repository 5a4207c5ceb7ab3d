"""The decoder in torch, as it is trained: Qwen3's architecture with names that a Hugging Face checkpoint has.

Weights are held in float32 and used in bfloat16. Sequences are padded on the right, so a causal mask is all the mask
there is. This file knows nothing of text, losses over tasks, or optimizers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Dimensions of the decoder; the defaults are the model in the box."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048

    def as_config(self, end: int, pad: int) -> dict[str, Any]:
        """config.json of the checkpoint; `end` and `pad` are token ids."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **asdict(self),
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "use_cache": True,
            "use_sliding_window": False,
            "initializer_range": 0.02,
            "torch_dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": end,
            "pad_token_id": pad,
        }


class Norm(nn.Module):
    """Root-mean-square norm with a gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Computed in float32, returned in the type of x."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class Linear(nn.Module):
    """A matrix without bias, multiplied in the type of its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """[.., inputs] to [.., outputs]."""
        return F.linear(x, self.weight.to(x.dtype))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of [B, T, heads, head_dim]; halves are paired (NeoX order)."""
    left, right = x.float().chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with norms on every query and key head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = (shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim)
        self.q_proj = Linear(shape.hidden_size, self.heads * self.dim)
        self.k_proj = Linear(shape.hidden_size, self.kv_heads * self.dim)
        self.v_proj = Linear(shape.hidden_size, self.kv_heads * self.dim)
        self.o_proj = Linear(self.heads * self.dim, shape.hidden_size)
        self.q_norm = Norm(self.dim, shape.rms_norm_eps)
        self.k_norm = Norm(self.dim, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, T, hidden] to the same."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.dim)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.dim)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.dim)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        mixed = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, self.heads * self.dim))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of [B, heads, T, dim] over [B, kv_heads, T, dim].

    On a CPU torch's tiled attention is slower than its matrix products, so there a block of queries at a time
    materialises its scores, over the keys up to its end.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    length = q.shape[2]
    bounds = [(begin, min(begin + QUERY_BLOCK, length)) for begin in range(0, length, QUERY_BLOCK)]
    return torch.cat([attend_block(q[:, :, begin:end], k[:, :, :end], v[:, :, :end]) for begin, end in bounds], 2)


QUERY_BLOCK = 256


def attend_block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the last queries, [B, heads, n, dim], over all keys and values, [B, heads, m, dim]."""
    n, m = q.shape[2], k.shape[2]
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(-1, -2)
    hidden = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(m - n + 1)
    return scores.float().masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype) @ v


class Mlp(nn.Module):
    """Gated feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden_size, shape.intermediate_size)
        self.up_proj = Linear(shape.hidden_size, shape.intermediate_size)
        self.down_proj = Linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[.., hidden] to the same."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, T, hidden] to the same."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token ids to hidden states; the output matrix is the embedding."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self._initialize(seed)

    def _initialize(self, seed: int) -> None:
        """Matrices small enough that the stream starts near the embedding; what adds to the stream smaller still."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                continue
            std = 0.02 if "embed" in name else weight.shape[1] ** -0.5
            if "o_proj" in name or "down_proj" in name:
                std /= (2 * self.shape.num_hidden_layers) ** 0.5
            with torch.no_grad():
                weight.normal_(0.0, std, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] ids to [B, T, hidden], bfloat16, after the last norm."""
        cos, sin = self.angles(ids.shape[1], ids.device)
        x = F.embedding(ids, self.embed_tokens.weight.to(torch.bfloat16))
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def angles(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [T, 1, head_dim / 2] each."""
        half = torch.arange(0, self.shape.head_dim, 2, device=device, dtype=torch.float32)
        frequency = self.shape.rope_theta ** (-half / self.shape.head_dim)
        angle = torch.arange(length, device=device, dtype=torch.float32)[:, None, None] * frequency
        return angle.cos(), angle.sin()

    def logits(self, hidden: Tensor) -> Tensor:
        """[.., hidden] to [.., vocab], float32."""
        return F.linear(hidden, self.embed_tokens.weight.to(hidden.dtype)).float()
