"""A matrix of the model on the device: plain, or whole numbers with scales (`quantized_linear.py`).

`Linear` is what the decoder calls; where several matrices read the same input they stand side by side in one, so that
there is one product for them. This file knows nothing of layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812

FLOAT32_OUT = hasattr(torch.ops.aten.mm, "dtype")
"""Whether a product of bf16 matrices can be given in float32."""


class Linear(Protocol):
    """y = x @ weight.T (+ bias)."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, inputs] to [T, outputs] in x's dtype."""

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """[T, inputs] to [T, outputs] in float32, for logits."""

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows of the matrix [n, inputs], for embeddings."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""


@dataclass(frozen=True)
class PlainLinear:
    """A matrix in the dtype that is computed in."""

    weight: torch.Tensor
    """[outputs, inputs]"""
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, inputs] to [T, outputs]."""
        return F.linear(x, self.weight, self.bias)

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """Logits are not rounded to bf16, which would make equals of the likeliest."""
        if x.is_cuda and x.dtype != torch.float32 and FLOAT32_OUT:
            return torch.mm(x, self.weight.t(), out_dtype=torch.float32)
        return self(x).float()

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """A look-up."""
        return F.embedding(index, self.weight)

    @property
    def nbytes(self) -> int:
        """Bytes of matrix and bias."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True)
class FixedLinear(PlainLinear):
    """The same through a kernel whose sums do not depend on how many tokens there are (`kernels/fixed.py`)."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, inputs] to [T, outputs]."""
        from kvik.runners.cuda.kernels import fixed

        y = fixed.multiply(x, self.weight, wide=False)
        return y if self.bias is None else y + self.bias

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, not rounded."""
        from kvik.runners.cuda.kernels import fixed

        return fixed.multiply(x, self.weight, wide=True)


@dataclass(frozen=True)
class SideBySide:
    """Matrices that read the same input but are held in different forms: their outputs one after another."""

    parts: tuple[Linear, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """One product for each."""
        return torch.cat([part(x) for part in self.parts], dim=-1)

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        """One product for each."""
        return torch.cat([part.wide(x) for part in self.parts], dim=-1)

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Not for embeddings, which are one matrix."""
        raise TypeError(f"{len(self.parts)} matrices side by side are no embedding")

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(part.nbytes for part in self.parts)
