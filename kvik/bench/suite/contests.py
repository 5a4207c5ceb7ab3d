"""The suite's parts as contests: which sides, held against which, and whose answers must be the same.

    latency       one request at a time
    memory        1, a quarter and all of the requests at once: weights, KV cache, activations
    prefix-cache  100 requests of which 70 % share 80 %, without and with the cache
    scheduling    prompts and decodes in steps of their own, and sharing steps
    graphs        captured graphs off and on; there are none on a CPU
    strong        the same requests on 1, 2, .. threads
    weak          as many times the requests as threads

This file knows nothing of how a contest is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvik.bench.ladder.rounds import Contest, Room, Side, plan_room
from kvik.bench.ladder.scenes import Scene
from kvik.bench.suite.scenes import Lengths, even, one_by_one, sharing, trickle
from kvik.config import EngineConfig

BLOCK = 32
SPEED = ("tokens_per_s", "ttft_s", "tpot_s")


@dataclass(frozen=True)
class Plan:
    """What all parts share: engine options as the user gave them, lengths, and the most threads to try."""

    engine: Mapping[str, Any]
    lengths: Lengths
    threads: int

    def config(self, scene: Scene, room: Room | None, **changes: Any) -> EngineConfig:
        """The user's options with room for a scene."""
        fitted = {"kv_cache_memory": room.kv_bytes if room else None, "max_model_len": scene.longest}
        return EngineConfig.from_options(**{**self.engine, **fitted, **changes})

    def room(self, scene: Scene) -> Room:
        """Memory in which the whole scene fits at once, and the model's weights."""
        return plan_room(self.config(scene, None), len(scene.arrivals), scene.longest, BLOCK)

    def two(self, scene: Scene, name: str, option: str, values: tuple[Any, Any], labels: tuple[str, str]) -> Entry:
        """One option both ways on one scene, with the same answers."""
        room = self.room(scene)
        sides = tuple(
            Side(label, self.config(scene, room, **{option: value}), scene, {option: value})
            for label, value in zip(labels, values, strict=True)
        )
        pairs = tuple((*labels, metric) for metric in SPEED)
        return Contest("suite", name, sides, pairs, (labels,), labels[1]), room


Entry = tuple[Contest, Room]


def latency(plan: Plan) -> Entry:
    """TTFT, TPOT and E2E without company."""
    return _alone(plan, one_by_one(plan.lengths), "latency")


def _alone(plan: Plan, scene: Scene, name: str) -> Entry:
    room = plan.room(scene)
    side = Side("kvik", plan.config(scene, room, prefix_caching=False), scene)
    return Contest("suite", name, (side,), (), (("kvik",),), "kvik"), room


def memory(plan: Plan) -> Entry:
    """Memory by component as more requests run at once."""
    counts = sorted({1, max(1, plan.lengths.requests // 4), plan.lengths.requests})
    scenes = {count: even(plan.lengths, count) for count in counts}
    room = plan.room(scenes[counts[-1]])
    sides = tuple(Side(f"{count} at once", plan.config(scene, room), scene) for count, scene in scenes.items())
    return Contest("suite", "memory", sides, (), tuple((side.name,) for side in sides), sides[-1].name), room


def prefix_cache(plan: Plan) -> Entry:
    """What sharing beginnings saves."""
    return plan.two(sharing(plan.lengths), "prefix-cache", "prefix_caching", (False, True), ("cache off", "cache on"))


def scheduling(plan: Plan) -> Entry:
    """Mixed steps against separate ones."""
    return plan.two(trickle(plan.lengths), "scheduling", "schedule", ("separate", "mixed"), ("separate", "mixed"))


def graphs(plan: Plan) -> Entry:
    """Captured graphs off and on."""
    return plan.two(one_by_one(plan.lengths), "graphs", "enforce_eager", (True, False), ("eager", "graphs"))


def thread_counts(most: int) -> list[int]:
    """1, 2, 4, .. and the most."""
    return sorted({1 << power for power in range(most.bit_length())} & set(range(1, most + 1)) | {most})


def strong(plan: Plan) -> Entry:
    """The same work on more threads, with the same answers."""
    return _scaling(plan, "strong-scaling", dict.fromkeys(thread_counts(plan.threads), plan.lengths.requests))


def weak(plan: Plan) -> Entry:
    """As much more work as there are threads."""
    each = max(1, plan.lengths.requests // plan.threads)
    return _scaling(plan, "weak-scaling", {count: count * each for count in thread_counts(plan.threads)})


def _scaling(plan: Plan, name: str, requests: Mapping[int, int]) -> Entry:
    scenes = {count: even(plan.lengths, number) for count, number in requests.items()}
    most = max(scenes)
    room = plan.room(scenes[most])
    sides = tuple(
        Side(_threads(count), plan.config(scene, room, threads=count), scene, {"threads": count})
        for count, scene in scenes.items()
    )
    pairs = tuple((_threads(1), _threads(count), "tokens_per_s") for count in scenes if count > 1)
    alike = (tuple(side.name for side in sides),) if len(set(requests.values())) == 1 else ()
    return Contest("suite", name, sides, pairs, alike, _threads(most)), room


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")


CONTESTS = {
    "latency": latency,
    "memory": memory,
    "prefix-cache": prefix_cache,
    "scheduling": scheduling,
    "graphs": graphs,
    "strong-scaling": strong,
    "weak-scaling": weak,
}
