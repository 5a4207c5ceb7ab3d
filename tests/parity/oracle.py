"""The parity check: what transformers answers, what a runner answers, and how far apart they are.

Runners are driven by hand-made StepPlans, with no scheduler in between: any runner of the Protocol can be passed in.
This file knows nothing of which runners exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.runners.runner import Runner
from kvik.step import Float32, Int32, SamplePlan, ScorePlan, StepPlan, as_int32

FLOAT32_BOUND = 2e-4
"""Largest difference of a logit between two float32 computations of one model."""
BLOCK = 32
"""Tokens in a block, unless a test is about that."""
BF16_RATIO = 1.5
"""Largest error of a bf16 computation, in units of transformers' own bf16 error."""


def shuffled_tables(lengths: Sequence[int], block_size: int, seed: int = 0) -> tuple[list[Int32], int]:
    """A block table for each sequence, from one shuffled pool with unused blocks in it, and the size of the pool."""
    counts = [-(-length // block_size) for length in lengths]
    num_blocks = sum(counts) + 3
    pool = np.random.default_rng(seed).permutation(num_blocks).astype(np.int32)
    return np.split(pool, np.cumsum(counts))[:-1], num_blocks


def plan_for(
    prompts: Sequence[Sequence[int]],
    spans: dict[int, tuple[int, int]],
    tables: Sequence[Int32],
    *,
    copies: Sequence[tuple[int, int]] = (),
    sample: SamplePlan | None = None,
    score: ScorePlan | None = None,
) -> StepPlan:
    """One step: row by row, prompt `key` computes its positions start .. stop - 1, spans being {key: (start, stop)}."""
    block_tables = np.full((len(spans), max(len(tables[key]) for key in spans)), -1, np.int32)
    for row, key in enumerate(spans):
        block_tables[row, : len(tables[key])] = tables[key]
    return StepPlan(
        step=0,
        keys=np.array(list(spans), np.int64),
        token_ids=as_int32([token for key, (start, stop) in spans.items() for token in prompts[key][start:stop]]),
        positions=as_int32([position for start, stop in spans.values() for position in range(start, stop)]),
        query_start_loc=as_int32(np.cumsum([0] + [stop - start for start, stop in spans.values()])),
        seq_lens=as_int32([stop for _, stop in spans.values()]),
        block_tables=block_tables,
        copies=as_int32(list(copies)).reshape(-1, 2),
        sample=sample or SamplePlan(),
        score=score or ScorePlan(),
    )


def scheduled_logits(
    runner: Runner, prompts: Sequence[Sequence[int]], tables: Sequence[Int32], schedule: Sequence[dict[int, int]]
) -> list[Float32]:
    """Logits after every token of every prompt; each step of the schedule gives prompts some tokens, {key: count}."""
    done = dict.fromkeys(range(len(prompts)), 0)
    pieces: dict[int, list[Float32]] = {key: [] for key in done}
    for step in schedule:
        spans = {key: (done[key], done[key] + count) for key, count in step.items()}
        plan = plan_for(prompts, spans, tables)
        logits = runner.logits(plan)
        for row, (key, (_, stop)) in enumerate(spans.items()):
            pieces[key].append(logits[plan.query_start_loc[row] : plan.query_start_loc[row + 1]])
            done[key] = stop
    return [np.concatenate(parts) for parts in pieces.values()]


def teacher_forced_logits(
    runner: Runner,
    checkpoint: Checkpoint,
    ids: Sequence[int],
    chunk_sizes: Sequence[int] | None = None,
    *,
    block_size: int = BLOCK,
    seed: int = 0,
) -> Float32:
    """Load a fresh runner and compute one prompt in chunks of these sizes (default: whole), float32 [len(ids), V]."""
    tables, num_blocks = shuffled_tables([len(ids)], block_size, seed)
    runner.load(checkpoint)
    runner.allocate(num_blocks, block_size)
    return scheduled_logits(runner, [ids], tables, [{0: size} for size in chunk_sizes or [len(ids)]])[0]


def transformers_logits(directory: Path, ids: Sequence[int], dtype: str = "float32") -> Float32:
    """What transformers answers for the checkpoint in this directory, float32 [len(ids), V]."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype), attn_implementation="eager")
    with torch.no_grad():
        logits = model.eval()(torch.tensor([list(ids)]), use_cache=False).logits
    answer: Float32 = logits[0].float().numpy()
    return answer


def max_difference(a: Float32, b: Float32) -> float:
    """Largest difference of any logit at any position; infinite where either is not a number."""
    assert a.shape == b.shape
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return float(np.where(np.isfinite(difference), difference, np.inf).max())


def greedy(rows: Sequence[int], num_logprobs: int = -1) -> SamplePlan:
    """Draw the likeliest token after the last one of each of these rows."""
    count = len(rows)
    zeros, ones = np.zeros(count, np.float32), np.ones(count, np.float32)
    return SamplePlan(
        rows=as_int32(rows),
        keys=np.arange(count, dtype=np.int64),
        temperature=zeros,
        top_k=np.zeros(count, np.int32),
        top_p=ones,
        min_p=zeros,
        repetition_penalty=ones,
        presence_penalty=zeros,
        frequency_penalty=zeros,
        seeds=np.zeros(count, np.uint64),
        positions=np.zeros(count, np.int64),
        num_logprobs=np.full(count, num_logprobs, np.int32),
        bias_start=np.zeros(count + 1, np.int32),
        history_start=np.zeros(count + 1, np.int32),
        history_prompt=np.zeros(count, np.int32),
    )
