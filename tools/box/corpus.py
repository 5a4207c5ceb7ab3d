"""Training text in batches: documents made on the fly, encoded, sorted by length into batches of equal padded length.

Chunk c of the text is a function of (seed, c, stage) alone, made by worker processes while the model trains on the
chunk before. Documents stand alone in their rows, so no mask between documents is needed and sorting by length keeps
padding low. This file knows nothing of the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tools.box.tokenizer import Encoded, encode_document
from tools.box.world.mixture import document
from tools.box.world.split import digest

LENGTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 1536, 2048)
"""Padded lengths; few, so that compiled code is made for each."""


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: `longest` tokens to a document, `long_share` of documents with a long prompt,
    `recall_share` that only ask for what stands in them.
    """

    until_tokens: float
    longest: int
    long_share: float
    recall_share: float


CURRICULUM = (
    Stage(2e6, 128, 0.0, 0.5),
    Stage(6e6, 256, 0.0, 0.35),
    Stage(10e6, 512, 0.0, 0.2),
    Stage(float("inf"), 2000, 0.12, 0.25),
)


@dataclass(frozen=True)
class Batch:
    """Rows of tokens padded on the right. ids, [B, T] int64; weights, [B, T] float32, of predicting that token."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    tokens: int
    """Without padding."""


def stage_at(tokens: float) -> Stage:
    """The stage of the curriculum after so many tokens."""
    return next(stage for stage in CURRICULUM if tokens < stage.until_tokens)


def encode_range(path: str, seed: int, begin: int, end: int, stage: Stage) -> list[Encoded]:
    """Documents begin..end in tokens; those that came out too long are left out."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(path)
    made = (
        encode_document(tokenizer, document(seed, n, stage.longest, stage.long_share, stage.recall_share))
        for n in range(begin, end)
    )
    return [each for each in made if len(each.ids) <= LENGTHS[-1]]


class Corpus:
    """Chunks of batches, one ahead of the reader."""

    def __init__(self, tokenizer: Path, seed: int, *, documents: int, batch_tokens: int, workers: int) -> None:
        self._path, self._seed, self._documents, self._batch_tokens = str(tokenizer), seed, documents, batch_tokens
        self._workers = workers
        self._pool = ProcessPoolExecutor(workers)
        self._ahead: dict[tuple[int, Stage], list[Future[list[Encoded]]]] = {}

    def _ask(self, chunk: int, stage: Stage) -> list[Future[list[Encoded]]]:
        key = (chunk, stage)
        if key not in self._ahead:
            first, share = chunk * self._documents, self._documents // self._workers
            self._ahead[key] = [
                self._pool.submit(
                    encode_range, self._path, self._seed, first + w * share, first + (w + 1) * share, stage
                )
                for w in range(self._workers)
            ]
        return self._ahead[key]

    def batches(self, chunk: int, stage: Stage) -> list[Batch]:
        """The batches of a chunk, in an order that mixes lengths; begins to make the next chunk."""
        documents = [each for future in self._ask(chunk, stage) for each in future.result()]
        del self._ahead[(chunk, stage)]
        self._ask(chunk + 1, stage)
        rng = Random(digest("order", self._seed, chunk))
        rng.shuffle(documents)
        made = list(cut(documents, self._batch_tokens))
        rng.shuffle(made)
        return made

    def close(self) -> None:
        """End the workers."""
        self._pool.shutdown(cancel_futures=True)


def padded_length(length: int) -> int:
    """The smallest of LENGTHS that holds so many tokens."""
    return next(size for size in LENGTHS if length <= size)


def cut(documents: list[Encoded], batch_tokens: int) -> Iterator[Batch]:
    """Batches of rows of one padded length, each of about `batch_tokens` places; what
    does not fill a batch is dropped, so that every batch of a length has the same shape.
    """
    by_length: dict[int, list[Encoded]] = {}
    for each in documents:
        by_length.setdefault(padded_length(len(each.ids)), []).append(each)
    for length, rows in sorted(by_length.items()):
        count = max(1, batch_tokens // length)
        for begin in range(0, len(rows), count):
            some = rows[begin : begin + count]
            if len(some) == count:
                yield pack(some, length)


def pack(rows: list[Encoded], length: int) -> Batch:
    """Documents as padded arrays."""
    ids = np.zeros((len(rows), length), np.int64)
    weights = np.zeros((len(rows), length), np.float32)
    for row, each in enumerate(rows):
        ids[row, : len(each.ids)] = each.ids
        weights[row, : len(each.ids)] = each.weights
    return Batch(ids, weights, sum(len(each.ids) for each in rows))
