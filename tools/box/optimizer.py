"""Muon for the matrices of the layers, Adam for embedding and norms, and the schedule of both.

Muon: momentum, then the nearest orthogonal matrix by five Newton-Schulz iterations of degree five (Jordan and others,
2024), so that every direction of a matrix learns at the same pace. Matrices of one shape are treated together. The
schedule is warm-up, constant, and a linear decay that may begin at any time. This file knows nothing of the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Rates:
    """Learning rates at full speed, and the steps of the warm-up."""

    matrix: float = 0.02
    other: float = 0.003
    warmup: int = 100


def orthogonalized(x: Tensor) -> Tensor:
    """[.., m, n] to matrices of the same row and column spaces whose singular values are near one."""
    a, b, c = COEFFICIENTS
    flip = x.shape[-2] > x.shape[-1]
    y = (x.mT if flip else x).bfloat16()
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return (y.mT if flip else y).float()


class Muon:
    """Nesterov momentum, orthogonalized. State: one buffer per matrix."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], momentum: float = 0.95, decay: float = 0.01) -> None:
        self._named = list(named)
        self._momentum, self._decay = momentum, decay
        self.state = {f"muon.{name}": torch.zeros_like(p) for name, p in self._named}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Use the gradients."""
        groups: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
        for name, p in self._named:
            assert p.grad is not None
            buffer = self.state[f"muon.{name}"]
            buffer.lerp_(p.grad, 1 - self._momentum)
            groups.setdefault(p.shape, []).append((p, p.grad.lerp(buffer, self._momentum)))
        for shape, members in groups.items():
            updates = orthogonalized(torch.stack([update for _, update in members]))
            scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
            for (p, _), update in zip(members, updates, strict=True):
                p.mul_(1 - rate * self._decay).add_(update, alpha=-scale)


class Adam:
    """Adam without weight decay. State: two buffers per parameter."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], betas: tuple[float, float] = (0.9, 0.98)) -> None:
        self._named = list(named)
        self._betas = betas
        self.state = {f"{k}.{name}": torch.zeros_like(p) for name, p in self._named for k in ("mean", "square")}

    @torch.no_grad()
    def step(self, rate: float, number: int) -> None:
        """Use the gradients; `number` counts steps from 1."""
        first, second = self._betas
        for name, p in self._named:
            assert p.grad is not None
            mean, square = self.state[f"mean.{name}"], self.state[f"square.{name}"]
            mean.lerp_(p.grad, 1 - first)
            square.lerp_(p.grad.square(), 1 - second)
            root = (square / (1 - second**number)).sqrt_().add_(1e-8)
            p.addcdiv_(mean, root, value=-rate / (1 - first**number))


class Optimizer:
    """Both, over one model."""

    def __init__(self, model: nn.Module, rates: Rates) -> None:
        named = list(model.named_parameters())
        self._rates = rates
        self._muon = Muon((n, p) for n, p in named if n.startswith("layers") and p.ndim == 2)
        self._adam = Adam((n, p) for n, p in named if not (n.startswith("layers") and p.ndim == 2))

    @property
    def state(self) -> dict[str, Tensor]:
        """All buffers by name, to be saved and filled again."""
        return {**self._muon.state, **self._adam.state}

    def step(self, number: int, share: float) -> None:
        """One step at `share` of the full rates; `number` counts from 1."""
        self._muon.step(self._rates.matrix * share)
        self._adam.step(self._rates.other * share, number)


def share_at(step: int, warmup: int, decay_from: int | None, decay_steps: int) -> float:
    """The share of the full rates at a step counted from 1: rising, then 1, then falling to 0."""
    rising = min(1.0, step / warmup)
    if decay_from is None:
        return rising
    return min(rising, max(0.0, 1.0 - (step - decay_from) / decay_steps))
