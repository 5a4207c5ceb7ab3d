"""Two small trained models, the texts their records were taken on, and how a runner scores them.

All of it lies in ../shared/data beside the checkout, where it is read in place; tests that need it are skipped without
it. This file knows nothing of which runners exist or of what a score should be.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from oracle import plan_for
from tokenizers import Tokenizer

from kvik.runners.runner import Runner
from kvik.step import ScorePlan, as_int32

DATA = Path(__file__).parents[3] / "shared" / "data"
MODELS = ("stories260K", "babyllama-tok361")
TEXTS = ("tinystories_sample_cs336", "tinystories_valid_sample(first 20 paras>200ch)")


def pieces_of_text(which: str) -> Iterator[str]:
    """The pieces a record's figure was taken on, cut from the file it names."""
    if which.startswith("tinystories_sample_cs336"):
        text = (DATA / "evaltext" / "tinystories_sample_cs336.txt").read_text()
        yield from (piece.strip() for piece in text.split("<|endoftext|>") if len(piece) > 100)
        return
    text = (DATA / "evaltext" / "tinystories_valid_sample.txt").read_text().replace("<|endoftext|>", "\n")
    yield from [line.strip() for line in text.split("\n") if len(line) > 200][:20]


def score(runner: Runner, ids: list[int], context: int) -> float:
    """Sum of the negative log-likelihoods of ids[1:]."""
    targets = as_int32(ids[1:])
    scored = ScorePlan(indices=as_int32(range(len(targets))), targets=targets, num_top=np.zeros_like(targets))
    plan = plan_for([ids], {0: (0, len(ids))}, [as_int32(range(context // 32))], score=scored)
    return -float(runner.run(plan).scored.logprobs.astype(np.float64).sum())


def encoded_pieces(model: str, which: str, context: int) -> list[list[int]]:
    """The pieces of a text in the model's tokens, cut at its context length."""
    tokenizer = Tokenizer.from_file(str(DATA / "models" / model / "hf" / "tokenizer.json"))
    return [tokenizer.encode(piece).ids[:context] for piece in pieces_of_text(which)]
