"""The contests of the ladder: all seven rungs on one workload, and for three of them the scene their claim is about.

    rungs          M1 .. M7    mixed lengths, all at once
    long-prompts   M3, M4      one long prompt at a time
    stall          M4, M5      a long prompt comes while eight requests decode
    prefixes       M5, M6      0, 50, 80 and 95 % of a prompt computed before

This file knows nothing of how a contest is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kvik.bench.ladder.rounds import Contest, Room, Side, plan_room
from kvik.bench.ladder.rungs import NAMES, SET_BY_LADDER, options_of
from kvik.bench.ladder.scenes import SHARES, Scene, Sizes, long_prompts, mixed_lengths, shared_prefix, stall
from kvik.config import EngineConfig
from kvik.engine.build import open_model
from kvik.errors import ConfigError

PRESETS = ("rungs", "long-prompts", "stall", "prefixes")
SLOT = 32
"""A contiguous request's room is a multiple of this many tokens."""
EVERY_STEP = ("tokens_per_s", "ttft_s", "tpot_s", "itl_p99_s", "kv_utilisation", "largest_batch", "weights_bytes")
"""What is compared from each rung to the next."""


@dataclass(frozen=True)
class Setting:
    """What the user chose: engine options that all rungs share, sizes, seats of the contiguous cache, tokens a step."""

    engine: Mapping[str, Any]
    sizes: Sizes
    seats: int = 8
    chunk: int = 512

    def __post_init__(self) -> None:
        defaults = EngineConfig.from_options()
        for name in SET_BY_LADDER:
            value = self.engine.get(name)
            concern = next(part for part in vars(defaults).values() if hasattr(part, name))
            if name in self.engine and value != getattr(concern, name):
                raise ConfigError(f"{name} is {value!r}; the ladder sets it, expected it not to be given")

    def config(self, rung: str, scene: Scene, room: Room | None = None) -> EngineConfig:
        """The options of a rung on a scene, in this room if it is planned."""
        chosen = {
            **self.engine,
            **options_of(rung),
            "max_model_len": scene.longest,
            "max_num_seqs": max(len(scene.arrivals), 1),
            "max_num_batched_tokens": self.chunk,
            "kv_cache_memory": room.kv_bytes if room else None,
        }
        return EngineConfig.from_options(**chosen)

    def room(self, scene: Scene) -> Room:
        """Memory in which this many requests of the scene's longest length have theirs reserved."""
        return plan_room(self.config("M1", scene), self.seats, scene.longest, SLOT)

    def side(self, rung: str, scene: Scene, room: Room, name: str | None = None) -> Side:
        """A rung on a scene."""
        return Side(name or rung, self.config(rung, scene, room), scene, options_of(rung))


def fitted(sizes: Sizes, engine: Mapping[str, Any]) -> Sizes:
    """The same sizes with token ids that the model has."""
    config = EngineConfig.from_options(model=engine.get("model"), seed=engine.get("seed", 0))
    top = open_model(config).spec.vocab_size - 1
    return Sizes(**{**vars(sizes), "top_token": top, "seed": config.runner.seed})


def contest_for(preset: str, setting: Setting) -> tuple[Contest, Room]:
    """A preset's contest and the memory it gets. Raises ConfigError for an unknown preset."""
    makers = {"rungs": _rungs, "long-prompts": _long_prompts, "stall": _stall, "prefixes": _prefixes}
    if preset not in makers:
        raise ConfigError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
    return makers[preset](setting)


def _rungs(setting: Setting) -> tuple[Contest, Room]:
    scene = mixed_lengths(setting.sizes)
    room = setting.room(scene)
    sides = tuple(setting.side(name, scene, room) for name in NAMES)
    pairs = tuple((a, b, metric) for a, b in pairwise(NAMES) for metric in EVERY_STEP)
    method = f"The KV cache has room for {setting.seats} requests of the longest length, in every rung alike."
    return Contest("ladder", "rungs", sides, pairs, (NAMES[:-1],), "M6", method), room


def _pair(setting: Setting, scene: Scene, rungs: tuple[str, str], metrics: tuple[str, ...]) -> tuple[Contest, Room]:
    room = setting.room(scene)
    sides = tuple(setting.side(name, scene, room) for name in rungs)
    pairs = tuple((*rungs, metric) for metric in metrics)
    return Contest("ladder", scene.name, sides, pairs, (rungs,), rungs[1]), room


def _long_prompts(setting: Setting) -> tuple[Contest, Room]:
    metrics = ("ttft_s", "tpot_s", "tokens_per_s", "activations_bytes")
    return _pair(setting, long_prompts(setting.sizes), ("M3", "M4"), metrics)


def _stall(setting: Setting) -> tuple[Contest, Room]:
    metrics = ("itl_max_s", "itl_p99_s", "tokens_per_s", "ttft_s")
    return _pair(setting, stall(setting.sizes), ("M4", "M5"), metrics)


def _prefixes(setting: Setting) -> tuple[Contest, Room]:
    scenes = {share: shared_prefix(setting.sizes, share) for share in SHARES}
    room = setting.room(scenes[0])
    sides = tuple(
        setting.side(rung, scene, room, f"{rung} {share}%") for share, scene in scenes.items() for rung in ("M5", "M6")
    )
    alike = tuple((f"M5 {share}%", f"M6 {share}%") for share in SHARES)
    against_nothing = tuple((alike[0][1], with_hits, "ttft_s") for _, with_hits in alike[1:])
    pairs = (*((*two, metric) for two in alike for metric in ("ttft_s", "tokens_per_s")), *against_nothing)
    return Contest("ladder", "prefixes", sides, pairs, alike, alike[-1][1]), room
