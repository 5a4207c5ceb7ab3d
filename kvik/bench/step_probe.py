"""A short run of an engine that shows what its steps cost: few and many rows, short and long contexts, small and large
prompts, every step of it observed.

This file drives the engine and knows nothing of how costs are fitted or what they are used for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kvik.bench.plans import random_tokens
from kvik.bench.step_cost import Step, StepCost, fit
from kvik.config import EngineConfig
from kvik.engine.build import build_engine
from kvik.engine.engine import Engine
from kvik.request import SamplingParams

BATCHES = (1, 2, 4, 8, 16)
CONTEXTS = (24, 160, 640)
PROMPTS = (8, 32, 96, 256, 640)
STEPS = 8
"""Decodes of every batch that are looked at."""


@dataclass(frozen=True)
class Probed:
    """What was learned of an engine."""

    cost: StepCost
    model: str
    kv_tokens: int
    """Tokens that the KV cache holds."""
    block_size: int
    max_model_len: int
    weight_bytes: int


def probe(config: EngineConfig, progress: Callable[[str], None], repetitions: int = 3) -> Probed:
    """Load the model, take the steps, fit the cost. Raises KvikError."""
    engine = build_engine(config)
    try:
        progress(f"{engine.memory.model}: a short run to see what a step costs")
        cost = fit(take_steps(engine, repetitions))
        memory = engine.memory
        return Probed(
            cost,
            memory.model,
            memory.num_tokens,
            memory.block_size,
            memory.max_model_len,
            engine.runner.memory().weights,
        )
    finally:
        engine.close()


def take_steps(engine: Engine, repetitions: int) -> list[Step]:
    """Every step of the run but those of the first round, which warms up."""
    steps: list[Step] = []

    def observe(plan: Any, _: Any, seconds: float) -> None:
        if plan.num_rows:
            steps.append(Step.of_plan(plan, seconds))

    engine.observer = observe
    try:
        for round_ in range(repetitions + 1):
            if round_ == 1:
                steps.clear()
            for number, (batch, length, output_len) in enumerate(shapes(engine)):
                run_batch(engine, batch, length, output_len, seed=1000 * round_ + number)
    finally:
        engine.observer = None
    return steps


def shapes(engine: Engine) -> Iterator[tuple[int, int, int]]:
    """Requests at once, tokens in and tokens out, as far as this engine holds them."""
    limit, tokens = engine.memory.max_model_len, engine.memory.num_tokens
    for context in CONTEXTS:
        for batch in BATCHES:
            fits = context + STEPS < limit and batch * (context + STEPS + engine.memory.block_size) <= tokens
            if fits and batch <= engine.config.scheduler.max_num_seqs:
                yield batch, context, STEPS
    for length in PROMPTS:
        if length + 1 < limit and length + engine.memory.block_size <= tokens:
            yield 1, length, 1


def run_batch(engine: Engine, batch: int, length: int, output_len: int, seed: int) -> None:
    """Requests of one shape, to their end."""
    params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
    for row, prompt in enumerate(random_tokens(seed, engine.spec.vocab_size, batch, length).tolist()):
        engine.add(prompt, params, request_id=f"probe-{row}")
    while engine.has_unfinished():
        engine.step()
