"""Runs sides in rounds, there and back, until all of them are known well enough; and makes a result of it.

Every run is on an engine that was built for it and is closed after it, so that nothing computed for one run is found
by another. The ladder and the suite are both lists of sides. This file knows nothing of what the sides are about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvik.bench.checks import refuse_failed, run_checks
from kvik.bench.evidence import Result, compose
from kvik.bench.ladder.drive import Player
from kvik.bench.ladder.scenes import Scene
from kvik.bench.machine import roofline
from kvik.bench.measure import Progress, Repeat, describe_repetition, interleaved
from kvik.bench.run_cost import run_limits
from kvik.bench.sides import compare_pair, known_to, set_capacities, summarize_side
from kvik.bench.workbench import (
    describe_model,
    describe_runner,
    engine_bench,
    flat_options,
    machine_with_limits,
    model_cost,
)
from kvik.config import EngineConfig
from kvik.engine.build import build_engine, open_model
from kvik.engine.memory import ModelFigures, blocks_for
from kvik.errors import ContextLengthError
from kvik.runners.choose import create_runner
from kvik.runners.native.machine import cores

Probe = Callable[[], Mapping[str, Any]]

METHOD = (
    "Every run is on an engine built for it; requests come at set counts of generated tokens, greedy, end tokens "
    "ignored, and the engine is stepped by hand. A token has the time of the end of its step. A round runs every side "
    "once in order and once in reverse; an effect is the ratio of two sides in one direction of one round, the control "
    "the ratio of a side's two runs within a round. What is held in the KV cache is read after every step, inside the "
    "time; prompt tokens computed are counted from the step plans."
)


@dataclass(frozen=True)
class Side:
    """One side: its name, the options that set it apart, and what it is put to."""

    name: str
    config: EngineConfig
    scene: Scene
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contest:
    """What is measured: sides, which of them are held against which in what, and whose answers must be the same."""

    kind: str
    name: str
    sides: tuple[Side, ...]
    pairs: tuple[tuple[str, str, str], ...]
    same_answers: tuple[tuple[str, ...], ...]
    lead: str
    """The side whose speed the summary is about."""
    method: str = ""

    @property
    def lead_side(self) -> Side:
        """The side whose speed the summary is about."""
        return next(side for side in self.sides if side.name == self.lead)


@dataclass(frozen=True)
class Room:
    """Memory of a KV cache, in bytes: a token of it, and all."""

    bytes_per_token: int
    kv_bytes: int


def plan_room(config: EngineConfig, seats: int, longest: int, block_size: int) -> Room:
    """A cache in which `seats` requests of the longest length fit when each has its whole length reserved."""
    checkpoint = open_model(config)
    limit = checkpoint.spec.max_position
    if longest > limit:
        raise ContextLengthError(
            f"the longest request has {longest} tokens; {checkpoint.name} holds at most {limit}: ask for fewer tokens"
        )
    runner = create_runner(config)
    try:
        figures = ModelFigures.of_checkpoint(checkpoint, config, runner.name)
    finally:
        runner.close()
    slots = seats * blocks_for(longest, block_size) * block_size
    kv_bytes = slots * figures.kv_bytes_per_token
    return Room(figures.kv_bytes_per_token, kv_bytes)


def quick_roofline() -> dict[str, Any]:
    """The machine's limits in a fifth of a second each, for runs that assert identities and not speed."""
    from kvik.runners import native

    if not any(reason is None for reason in native.available().values()):
        return dict(roofline())
    measured = native.roofline(cores(), seconds=0.05, read_bytes=1 << 27)
    return {"read_bandwidth": measured["read_bandwidth"], "matrix_peak": dict(measured["matrix_peak"])}


class Ring:
    """Runs the sides of a contest and remembers what the engines said of themselves."""

    def __init__(self, contest: Contest, room: Room, progress: Progress) -> None:
        self._contest, self._room, self._progress = contest, room, progress
        self.described: dict[str, dict[str, Any]] = {}
        self._weights: int | None = None
        """Bytes, of the first side: they and the cache are the memory that all sides are given."""

    def round(self) -> dict[str, Any]:
        """All sides there and back."""
        runs: dict[str, list[dict[str, Any]]] = {side.name: [] for side in self._contest.sides}
        for side in [*self._contest.sides, *reversed(self._contest.sides)]:
            runs[side.name].append(self._run(side))
        lead = runs[self._contest.lead]
        return {"tokens_per_s": sum(run["tokens_per_s"] for run in lead) / len(lead), "sides": runs}

    def _run(self, side: Side) -> dict[str, Any]:
        engine = build_engine(side.config)
        try:
            weights = engine.runner.memory().weights
            self._weights = weights if self._weights is None else self._weights
            run = Player(engine, side.scene, self._weights + self._room.kv_bytes).play()
            bench = engine_bench(engine)
            self.described[side.name] = {
                **side.options,
                **describe_runner(engine.runner),
                "model": describe_model(bench.name, bench.cost),
            }
        finally:
            engine.close()
        self._progress(f"  {side.name}: {run['tokens_per_s']:.1f} tokens/s, {run['steps']} steps")
        return run


def hold(
    contest: Contest, room: Room, repeat: Repeat, progress: Progress, probe: Probe = roofline, **further: Any
) -> Result:
    """Run a contest. `further` are fields added to the result before it is checked. Raises EvidenceError."""
    ring = Ring(contest, room, progress)
    progress(f"{contest.kind} {contest.name}: {', '.join(side.name for side in contest.sides)}, there and back")
    samples = interleaved(
        ring.round,
        "tokens_per_s",
        repeat,
        progress,
        probe,
        known_to=lambda taken: known_to(taken, "tokens_per_s"),
    )
    set_capacities(samples)
    result = _compose(contest, samples, repeat, ring.described)
    result["sides"] = {
        side.name: {"options": ring.described[side.name], "metrics": summarize_side(samples, side.name)}
        for side in contest.sides
    }
    result["pairs"] = [compare_pair(samples, {"a": a, "b": b, "metric": metric}) for a, b, metric in contest.pairs]
    result["same_answers"] = [list(group) for group in contest.same_answers]
    result |= further
    result["checks"] = run_checks(result)
    refuse_failed(result["checks"])
    return result


def _compose(
    contest: Contest, samples: Sequence[dict[str, Any]], repeat: Repeat, described: Mapping[str, Any]
) -> Result:
    side = contest.lead_side
    checkpoint = open_model(side.config)
    runner = create_runner(side.config)
    try:
        cost = model_cost(side.config, runner, checkpoint.spec)
    finally:
        runner.close()
    steps = min(run["steps"] for sample in samples for run in sample["sides"][side.name])
    return compose(
        kind=contest.kind,
        metric="tokens_per_s",
        unit="tokens/s",
        machine=machine_with_limits(list(samples)),
        model=dict(described[side.name]["model"]),
        options=flat_options(side.config),
        workload=describe_scene(contest, side.scene),
        seed=side.config.runner.seed,
        warmups=repeat.warmups,
        samples=samples,
        limits=run_limits(cost, side.scene.requests, steps),
        how_obtained=f"{METHOD} {contest.method} {describe_repetition(repeat)}.".replace("  ", " "),
    )


def describe_scene(contest: Contest, scene: Scene) -> dict[str, Any]:
    """The workload as a result file names it."""
    requests = scene.requests
    return {
        "preset": contest.name,
        "lead": contest.lead,
        "scene": scene.why,
        "requests": len(scene.arrivals),
        "mean_tokens": scene.mean_tokens,
        "input_tokens": requests.input_tokens,
        "output_tokens": requests.output_tokens,
        "shortest_input": min(map(len, requests.prompts)),
        "longest_input": max(map(len, requests.prompts)),
        "shortest_output": min(requests.output_lens),
        "longest_output": max(requests.output_lens),
    }
