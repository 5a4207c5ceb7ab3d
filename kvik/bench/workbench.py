"""A loaded model, ready to be timed: what measurements on a runner or through an engine share.

Opens the checkpoint, loads the runner that the options choose, and describes both for the result file. This file
knows nothing of schedulers, text or clocks.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kvik.bench.cost import Cost, Forms
from kvik.bench.evidence import Result, compose
from kvik.bench.machine import describe
from kvik.bench.measure import Repeat, describe_repetition
from kvik.bench.plans import Layout
from kvik.checkpoint.spec import DecoderSpec
from kvik.config import EngineConfig
from kvik.engine.build import open_model
from kvik.engine.engine import Engine
from kvik.errors import ContextLengthError
from kvik.runners.choose import create_runner
from kvik.runners.runner import Runner


@dataclass(frozen=True)
class Workbench:
    """A loaded runner and what is known about its model."""

    config: EngineConfig
    runner: Runner
    name: str
    spec: DecoderSpec

    @cached_property
    def cost(self) -> Cost:
        """What this model costs in the form it is held in."""
        return model_cost(self.config, self.runner, self.spec)

    def result(
        self,
        kind: str,
        workload: Mapping[str, Any],
        samples: list[dict[str, Any]],
        repeat: Repeat,
        *,
        limits: Mapping[str, Any],
        method: str,
    ) -> Result:
        """The evidence of samples in tokens/s. Raises EvidenceError if a check fails."""
        return compose(
            kind=kind,
            metric="tokens_per_s",
            unit="tokens/s",
            machine=machine_with_limits(samples),
            model=describe_model(self.name, self.cost),
            options=flat_options(self.config) | describe_runner(self.runner),
            workload=workload,
            seed=self.config.runner.seed,
            warmups=repeat.warmups,
            samples=samples,
            limits=limits,
            how_obtained=f"{method} {describe_repetition(repeat)}.",
        )

    def layout(self, rows: int, max_len: int) -> Layout:
        """Room for `rows` sequences of `max_len` tokens. Raises ContextLengthError if the model is not made for it."""
        limit = self.config.model.max_model_len or self.spec.max_position
        if max_len > limit:
            raise ContextLengthError(f"{max_len} tokens are asked for; {self.name} holds at most {limit}")
        cache = self.config.cache
        block_size = cache.block_size if cache.kv_layout == "paged" else -(-max_len // 16) * 16
        return Layout(rows, max_len, block_size)


def model_cost(config: EngineConfig, runner: Runner, spec: DecoderSpec) -> Cost:
    """The cost model of a loaded model; its checkpoint is opened again for what is quantized in it."""
    return Cost(spec, Forms.of_checkpoint(open_model(config), config, runner.name))


def describe_model(name: str, cost: Cost) -> dict[str, Any]:
    """The model as a result file names it."""
    spec, forms = cost.spec, cost.forms
    return {
        "name": name,
        "family": spec.family,
        "parameters": spec.num_parameters(),
        "layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "weights": forms.label,
        "kv_dtype": forms.kv,
    }


def describe_runner(runner: Runner) -> dict[str, Any]:
    """Which runner and kernels computed, and in how much memory."""
    return {"runner": runner.name, "kernels": runner.kernels().chosen, "memory": dataclasses.asdict(runner.memory())}


def flat_options(config: EngineConfig) -> dict[str, Any]:
    """Every engine option with its value."""
    return {name: value for part in dataclasses.asdict(config).values() for name, value in part.items()}


def engine_bench(engine: Engine) -> Workbench:
    """What a loaded engine computes with."""
    return Workbench(engine.config, engine.runner, engine.memory.model, engine.spec)


@contextmanager
def open_workbench(config: EngineConfig) -> Iterator[Workbench]:
    """Load the model, hand over the bench, free everything."""
    checkpoint = open_model(config)
    runner = create_runner(config)
    try:
        runner.load(checkpoint)
        yield Workbench(config, runner, checkpoint.name, checkpoint.spec)
    finally:
        runner.close()


def machine_with_limits(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The machine, with the median of the limits measured beside the samples."""
    bandwidth = statistics.median(sample["read_bandwidth"] for sample in samples)
    forms = samples[0]["matrix_peak"]
    peak = {form: statistics.median(sample["matrix_peak"][form] for sample in samples) for form in forms}
    return describe() | {"read_bandwidth": bandwidth, "matrix_peak": peak}
