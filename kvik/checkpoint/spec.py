"""DecoderSpec: everything that tells one dense decoder from another, as typed, frozen data.

One decoder serves every family; a family differs only in the fields below. A spec knows nothing of files, of how a
family spells its config, or of how it is computed.

The decoder that a spec describes, for a token at position p with residual x (float32 vector of hidden_size):

    for each layer:
        a = rms_norm(x, attn_norm)
        q, k, v = a @ q.T (+ q_bias), a @ k.T (+ k_bias), a @ v.T (+ v_bias)      q: num_heads x head_dim
        if qk_norm: q, k = rms_norm(q, q_norm), rms_norm(k, k_norm)               per head
        q, k = rope(q, p), rope(k, p)                                             halves rotated (GPT-NeoX order)
        attend to positions max(0, p - window + 1) .. p, scale head_dim ** -0.5   head h reads kv head h // group
        x = x + attention @ o.T (+ o_bias)
        m = rms_norm(x, mlp_norm)
        x = x + (silu(m @ gate.T) * (m @ up.T)) @ down.T
    logits = rms_norm(x, final_norm) @ head.T                                     head is embed if tied
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding (Su et al. 2021) and the ways it is stretched to longer contexts."""

    theta: float = 10000.0
    kind: str = "default"
    """default, linear, llama3 or yarn."""
    factor: float = 1.0
    original_max_position: int = 0
    """Context length before stretching (llama3, yarn)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    """llama3 only."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """yarn only."""
    attention_factor: float = 1.0
    """Multiplies cos and sin (yarn)."""

    def inv_freq(self, head_dim: int) -> NDArray[np.float32]:
        """Angular frequency of each rotated pair, float32 [head_dim / 2], for this kind of stretching.

        linear: Chen et al. 2023. llama3: as in Llama 3.1's reference code. yarn: Peng et al. 2023, section 3.2.
        """
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        # The power in double, then rounded: a float32 power can be off by a bit, which position 40,000 makes visible.
        period = np.power(np.float64(self.theta), exponent.astype(np.float64)).astype(np.float32)
        freq: NDArray[Any] = np.float32(1.0) / period
        if self.kind == "linear":
            freq = freq / np.float32(self.factor)
        elif self.kind == "llama3":
            freq = self._llama3(freq)
        elif self.kind == "yarn":
            freq = self._yarn(period, head_dim)
        return np.asarray(freq, np.float32)

    def _llama3(self, freq: NDArray[np.float32]) -> NDArray[Any]:
        wavelength = 1 / freq * np.float32(2 * math.pi)
        low = self.original_max_position / self.low_freq_factor
        high = self.original_max_position / self.high_freq_factor
        smooth = (1 / wavelength * np.float32(self.original_max_position) - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        between = (1 - smooth) * freq / self.factor + smooth * freq
        stretched = np.where(wavelength > low, freq / self.factor, freq)
        mixed: NDArray[Any] = np.where((wavelength <= low) & (wavelength >= high), between, stretched)
        return mixed

    def _yarn(self, period: NDArray[np.float32], head_dim: int) -> NDArray[Any]:
        def dim_of(rotations: float) -> float:
            return (head_dim * math.log(self.original_max_position / (rotations * 2 * math.pi))) / (
                2 * math.log(self.theta)
            )

        low, high = dim_of(self.beta_fast), dim_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        if low == high:
            high += 0.001
        ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
        kept = 1 - ramp
        blended: NDArray[Any] = 1 / (self.factor * period) * (1 - kept) + 1 / period * kept
        return blended


@dataclass(frozen=True)
class DecoderSpec:
    """The shape of a dense decoder and its declared differences."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeSpec
    max_position: int
    """Tokens the model was trained for (after any stretching)."""
    dtype: str = "bf16"
    """Form of the stored weights: bf16, f16 or f32."""
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    sliding_window: tuple[int, ...] = ()
    """Per layer, how many positions a token sees, its own included; 0 is all. Empty: 0 for every layer."""
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    def window(self, layer: int) -> int:
        """Positions a token of this layer sees; 0 is all."""
        return self.sliding_window[layer] if self.sliding_window else 0

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by its canonical name, with the shape it must have.

        Matrices are [outputs, inputs]. Names: embed, layers.N.{attn_norm, q, k, v, o, q_bias, k_bias, v_bias, o_bias,
        q_norm, k_norm, mlp_norm, gate, up, down}, final_norm, head (absent if tied).
        """
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_layers):
            shapes |= {f"layers.{layer}.{name}": shape for name, shape in self._layer_shapes().items()}
        shapes["final_norm"] = (self.hidden_size,)
        if not self.tied_head:
            shapes["head"] = (self.vocab_size, self.hidden_size)
        return shapes

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        q, kv, h, i = (
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
            self.hidden_size,
            self.intermediate_size,
        )
        shapes: dict[str, tuple[int, ...]] = {"attn_norm": (h,), "q": (q, h), "k": (kv, h), "v": (kv, h), "o": (h, q)}
        if self.qkv_bias:
            shapes |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
        if self.o_bias:
            shapes["o_bias"] = (h,)
        if self.qk_norm:
            shapes |= {"q_norm": (self.head_dim,), "k_norm": (self.head_dim,)}
        return shapes | {"mlp_norm": (h,), "gate": (i, h), "up": (i, h), "down": (h, i)}

    def num_parameters(self) -> int:
        """Weights of all tensors, a tied head counted once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())
