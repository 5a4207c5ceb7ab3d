"""The Runner protocol: what the engine needs from whatever computes the model.

A runner owns the weights, the KV arena and nothing else: no policy, no requests, no text. It executes StepPlans
in order and answers each with a StepResult.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.step import Float32, StepPlan, StepResult


@dataclass(frozen=True)
class MemoryUse:
    """Bytes a runner holds, by component."""

    weights: int
    kv: int
    activations: int


@dataclass(frozen=True)
class KernelChoice:
    """Which candidate serves, and why each other one does not."""

    chosen: str
    refused: dict[str, str] = field(default_factory=dict)


def weight_form(weights: str, stored: str) -> str:
    """The form in which weights stored as bf16, f16 or f32 are held under the option `weights`.

    auto keeps bf16 and f32 as stored and holds f16 as bf16. bf16, f32, int8 and int4 are what they say; the last two
    quantize every matrix, the embedding and the head included, straight from what is stored, and hold norms and biases
    as float32.
    """
    if weights != "auto":
        return weights
    return "f32" if stored == "f32" else "bf16"


def kv_form(kv_dtype: str, held: str) -> str:
    """The form in which a fast runner holds keys and values under the option `kv_dtype`, beside weights held as `held`.

    auto is f32 for f32 weights and bf16 otherwise, quantized weights included.
    """
    if kv_dtype != "auto":
        return kv_dtype
    return "f32" if held == "f32" else "bf16"


class Runner(Protocol):
    """Load, allocate, then run plan after plan. Not thread-safe: one caller at a time."""

    @property
    def name(self) -> str:
        """native, reference, cuda."""

    @property
    def vocab_size(self) -> int: ...

    def load(self, checkpoint: Checkpoint) -> None:
        """Take the weights in, in the form the options ask for. Raises CheckpointError, NotEnoughMemoryError."""

    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache one token takes, over all layers."""

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Reserve the KV arena: blocks 0 .. num_blocks - 1. Raises NotEnoughMemoryError."""

    def run(self, plan: StepPlan) -> StepResult:
        """Copy blocks, run the model over the plan's tokens, draw and score."""

    def logits(self, plan: StepPlan) -> Float32:
        """Like `run`, but returns the logits of every token, float32 [T, vocab_size], and draws nothing. For tests
        and evaluation, not for serving.
        """

    def memory(self) -> MemoryUse: ...

    def kernels(self) -> KernelChoice:
        """What computes, for `kvik info`."""

    def close(self) -> None:
        """Free everything. Idempotent."""


@runtime_checkable
class OwnMemory(Protocol):
    """What a runner has beside, whose weights and KV lie in memory that is not the host's."""

    def free_memory(self) -> int:
        """Bytes that are free there."""

    def peak_bytes(self, num_tokens: int, num_rows: int) -> int:
        """The most that a step of so many tokens and rows takes beside weights and KV, in bytes, measured before
        `allocate`.
        """
