"""A training run on disk: weights, optimizer and where it stands, in one safetensors file; and its log.

Files are written aside and renamed, so that a run that is killed leaves its last whole state. This file knows nothing
of how training works.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    tokens: int = 0
    chunk: int = 0
    """Next chunk of the training text."""
    batch: int = 0
    """Batches of that chunk already used."""
    seconds: float = 0.0
    """Of processor time, all cores together; a run that is paused spends none."""
    decay_from: int | None = None
    decay_steps: int = 0


def save(path: Path, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Write all tensors and the progress, as one file that appears whole or not at all."""
    aside = path.with_suffix(".tmp")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, aside, metadata={"progress": json.dumps(asdict(progress))})
    os.replace(aside, path)


@torch.no_grad()
def load(path: Path, tensors: dict[str, Tensor]) -> Progress:
    """Fill tensors from a file that has all of them."""
    with safe_open(path, "pt") as file:
        for name, tensor in tensors.items():
            tensor.copy_(file.get_tensor(name))
        return Progress(**json.loads(file.metadata()["progress"]))


@torch.no_grad()
def load_shipped(path: Path, weights: dict[str, Tensor]) -> Progress:
    """Fill weights from an exported checkpoint. What it has seen goes on counting; steps and the decay begin anew."""
    with safe_open(path, "pt") as file:
        for name, tensor in weights.items():
            tensor.copy_(file.get_tensor(name))
        seen = Progress(**json.loads(file.metadata()["progress"]))
    return Progress(tokens=seen.tokens, chunk=seen.chunk + 1, seconds=seen.seconds)


def progress_of(path: Path) -> str:
    """The progress that a file of a run holds, as JSON."""
    with safe_open(path, "pt") as file:
        return str(file.metadata()["progress"])


def append_log(path: Path, record: dict[str, Any]) -> None:
    """One JSON object as a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """All lines of a log; none if there is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
