"""The models of a comparison, loaded side by side, each on a runner of its own with room for one sequence.

They must read the same token ids as the same text, or a divergence between them would mean nothing. This file knows
nothing of what is made of their logits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvik.bench.judge_operands import Operand
from kvik.bench.plans import Layout, make_plan
from kvik.bench.workbench import Workbench
from kvik.checkpoint import GgufCheckpoint
from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.formats.gguf.parts import GgufParts, open_parts
from kvik.checkpoint.formats.shards import Weights, open_weights
from kvik.engine.build import open_model, open_tokenizer
from kvik.errors import InvalidRequestError
from kvik.runners.choose import create_runner
from kvik.step import Float32, Int32
from kvik.text.tokenizer import Tokenizer

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Side:
    """A loaded model with its label, its text and its size."""

    label: str
    bench: Workbench
    tokenizer: Tokenizer | None
    disk_bytes: int | None
    """Of the files that hold the weights; None for a model without files."""
    load_peak_bytes: int | None
    """By how much the process's resident memory grew at most while this model was loaded, pages of its files included;
    None where the system does not say.
    """

    @property
    def max_len(self) -> int:
        """Tokens of the longest sequence."""
        return self.bench.config.model.max_model_len or self.bench.spec.max_position

    def allocate(self, max_len: int) -> Layout:
        """Room in the KV cache for one sequence. Raises ContextLengthError, NotEnoughMemoryError."""
        layout = self.bench.layout(1, max_len)
        self.bench.runner.allocate(layout.num_blocks, layout.block_size)
        return layout

    def feed(self, layout: Layout, token_ids: Int32, start: int) -> None:
        """Compute these tokens [n] from position `start` on, for those that follow."""
        self.bench.runner.run(make_plan(start, layout, token_ids[None], start, draw=False))

    def logits(self, layout: Layout, token_ids: Int32, start: int) -> Float32:
        """The same, with the logits [n, vocab] after each."""
        return self.bench.runner.logits(make_plan(start, layout, token_ids[None], start, draw=False))

    def memory_bytes(self) -> dict[str, int]:
        """What the runner holds by now, by component, and their total."""
        memory = self.bench.runner.memory()
        parts = {"weights": memory.weights, "kv": memory.kv, "activations": memory.activations}
        return parts | {"total": sum(parts.values())}


@contextmanager
def open_sides(operands: Sequence[Operand]) -> Iterator[list[Side]]:
    """Every operand loaded, freed at the end. Raises InvalidRequestError for different vocabularies, and whatever keeps
    a model from being loaded.
    """
    checkpoints = [open_model(operand.config) for operand in operands]
    tokenizers = [open_tokenizer(checkpoint) for checkpoint in checkpoints]
    check_vocabularies([
        (operand.label, checkpoint.spec.vocab_size, tokenizer)
        for operand, checkpoint, tokenizer in zip(operands, checkpoints, tokenizers, strict=True)
    ])  # fmt: skip
    with ExitStack() as stack:
        yield [_load(*each, stack) for each in zip(operands, checkpoints, tokenizers, strict=True)]


def _load(operand: Operand, checkpoint: Checkpoint, tokenizer: Tokenizer | None, stack: ExitStack) -> Side:
    runner = create_runner(operand.config)
    stack.callback(runner.close)
    before = reset_peak()
    runner.load(checkpoint)
    peak = peak_since(before)
    bench = Workbench(operand.config, runner, checkpoint.name, checkpoint.spec)
    return Side(operand.label, bench, tokenizer, disk_bytes(checkpoint), peak)


def check_vocabularies(sides: Sequence[tuple[str, int, Tokenizer | None]]) -> None:
    """That all read the first one's token ids alike: label, size of the logits and tokenizer, where there is one.

    Raises InvalidRequestError naming two that do not.
    """
    (label, size, tokenizer), *others = sides
    for other_label, other_size, other in others:
        if other_size != size:
            raise InvalidRequestError(
                f"{other_label} has a vocabulary of {other_size} tokens and {label} one of {size}; expected the same",
                param="model",
            )
        if tokenizer is None or other is None:
            continue
        if (token := _first_difference(tokenizer, other)) is not None:
            raise InvalidRequestError(
                f"{other_label} and {label} have different vocabularies: token {token} is {other.token_bytes(token)!r} "
                f"and {tokenizer.token_bytes(token)!r}; expected the same",
                param="model",
            )


def _first_difference(one: Tokenizer, other: Tokenizer) -> int | None:
    tokens = range(min(one.vocab_size, other.vocab_size))  # beyond lies padding, which has no text
    return next((each for each in tokens if one.token_bytes(each) != other.token_bytes(each)), None)


def disk_bytes(checkpoint: Checkpoint) -> int | None:
    """Size of the files that hold the weights; None for a model without files."""
    weights: GgufParts | Weights
    if isinstance(checkpoint, GgufCheckpoint):
        weights = open_parts(Path(checkpoint.name))
    elif checkpoint.directory is not None:
        weights = open_weights(checkpoint.directory)
    else:
        return None
    return sum(path.stat().st_size for path in {weights.path(name) for name in weights.names()})


def reset_peak() -> int | None:
    """Have the system forget the largest resident memory so far; returns the present one, in bytes."""
    try:
        (PROC / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _resident("VmRSS")


def peak_since(before: int | None) -> int | None:
    """By how much resident memory has grown at most since `reset_peak`."""
    peak = _resident("VmHWM")
    return max(0, peak - before) if before is not None and peak is not None else None


def _resident(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", (PROC / "status").read_text(encoding="ascii"), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def as_ids(token_ids: Sequence[int]) -> Int32:
    """Token ids as runners take them."""
    return np.asarray(token_ids, np.int32)
