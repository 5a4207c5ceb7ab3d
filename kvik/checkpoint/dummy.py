"""Dummy models: the real shapes with random weights, made when asked for, never stored.

Speed does not depend on the values of weights, so a model of the true shape can be measured without a download; and
tiny ones of every family make quick tests. Every tensor is a pure function of seed and name: random 16-bit numbers
pick from a table of 65,536 normal quantiles, a pass that runs at memory speed. This file knows nothing of disks.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.checkpoint import Tensor, float32_to_bf16
from kvik.checkpoint.files import shown
from kvik.checkpoint.spec import DecoderSpec, RopeSpec
from kvik.errors import CheckpointError

PREFIX = "dummy:"
WEIGHT_STD = 0.02
NORM_STD = 0.1
_LEVELS = 1 << 16
_CHUNK = 1 << 16
"""Elements drawn at a time; a multiple of 4, the 16-bit numbers in one 64-bit draw."""
_NUMPY = {"bf16": np.uint16, "f16": np.float16, "f32": np.float32}


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool) -> DecoderSpec:
    return DecoderSpec(
        family="qwen3",
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope=RopeSpec(theta=1e6),
        max_position=40960,
        qk_norm=True,
        tied_head=tied,
        bos_id=151643,
        eos_ids=(151645,),
    )


_TINY = DecoderSpec(
    family="llama",
    vocab_size=307,
    hidden_size=64,
    intermediate_size=168,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-6,
    rope=RopeSpec(),
    max_position=1024,
    tied_head=True,
    bos_id=1,
    eos_ids=(2,),
)
_STRETCHED = RopeSpec(500000.0, "llama3", factor=8.0, original_max_position=128)

DUMMIES: dict[str, DecoderSpec] = {
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, tied=True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, tied=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, tied=True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, tied=False),
    "tiny-qwen3": replace(_TINY, family="qwen3", qk_norm=True, head_dim=32),
    "tiny-qwen2": replace(_TINY, family="qwen2", qkv_bias=True, hidden_size=96, num_heads=6, tied_head=False),
    "tiny-llama": replace(_TINY, rope=_STRETCHED, num_kv_heads=4, num_layers=3, tied_head=False),
    "tiny-mistral": replace(_TINY, family="mistral", sliding_window=(16, 16, 16), num_layers=3, vocab_size=331),
}
"""Every dummy by its name, without the prefix."""


class DummyCheckpoint:
    """A model of random weights. Satisfies the `Checkpoint` protocol."""

    def __init__(self, name: str, seed: int = 0) -> None:
        """`name` with or without `dummy:`. Raises CheckpointError listing the known names."""
        short = name.removeprefix(PREFIX)
        if short not in DUMMIES:
            raise CheckpointError(f"no dummy model {shown(short)}; expected one of {', '.join(DUMMIES)}")
        self._set(PREFIX + short, DUMMIES[short], seed)

    @classmethod
    def from_spec(cls, spec: DecoderSpec, seed: int = 0) -> DummyCheckpoint:
        """Random weights for any spec. Raises CheckpointError if its dtype is none of bf16, f16, f32."""
        if spec.dtype not in _NUMPY:
            raise CheckpointError(f"dtype is {spec.dtype!r}; expected one of {', '.join(_NUMPY)}")
        checkpoint = cls.__new__(cls)
        checkpoint._set(f"{PREFIX}{spec.family}", spec, seed)
        return checkpoint

    def _set(self, name: str, spec: DecoderSpec, seed: int) -> None:
        self._name, self._spec, self._seed = name, spec, seed
        self._shapes = spec.tensor_shapes()

    @property
    def name(self) -> str:
        """`dummy:NAME`."""
        return self._name

    @property
    def spec(self) -> DecoderSpec:
        """The shape asked for."""
        return self._spec

    @property
    def directory(self) -> None:
        """None: a dummy has no tokenizer."""
        return

    def tensor(self, name: str) -> Tensor:
        """Make a weight: norms 1 + 0.1 N, all else 0.02 N, N a standard normal. Raises CheckpointError."""
        if name not in self._shapes:
            raise CheckpointError(f"{self._name} has no weight named {shown(name)}")
        table = self._norms if name.endswith("norm") else self._weights
        data = _draw(table, math.prod(self._shapes[name]), _seed_of(self._seed, name))
        return Tensor(name, self._spec.dtype, data.reshape(self._shapes[name]))

    def release(self, name: str) -> None:
        """Nothing to give back: the caller holds the only copy."""

    @cached_property
    def _weights(self) -> NDArray[Any]:
        return _stored(_normal_quantiles() * WEIGHT_STD, self._spec.dtype)

    @cached_property
    def _norms(self) -> NDArray[Any]:
        return _stored(1.0 + _normal_quantiles() * NORM_STD, self._spec.dtype)


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")


def _normal_quantiles() -> NDArray[np.float64]:
    """Standard normal at the middles of 65,536 equal slices of probability; symmetric, +-4.3 at the ends."""
    inverse = NormalDist().inv_cdf
    lower = np.array([inverse((i + 0.5) / _LEVELS) for i in range(_LEVELS // 2)])
    return np.concatenate([lower, -lower[::-1]])


def _stored(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    if dtype == "bf16":
        return float32_to_bf16(values.astype(np.float32))
    return values.astype(_NUMPY[dtype])


def _draw(table: NDArray[Any], count: int, seed: int) -> NDArray[Any]:
    """`count` entries of a table of 65,536, picked uniformly; the numbers do not depend on the chunk size."""
    source = np.random.PCG64(seed)
    out = np.empty(count, table.dtype)
    for at in range(0, count, _CHUNK):
        size = min(_CHUNK, count - at)
        picks = source.random_raw(-(-size // 4)).astype("<u8", copy=False).view("<u2")[:size]
        # mode="clip" spares numpy a copy of the output; no index is out of range.
        np.take(table, picks, out=out[at : at + size], mode="clip")
    return out
