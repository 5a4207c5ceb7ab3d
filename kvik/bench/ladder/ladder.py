"""The ladder as a measurement: a preset's contest, the claims beside it, and for M7 what it costs in quality.

Figures come from rounds.py, claims from claims.py. This file knows nothing of command lines or files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from kvik.bench.checks import refuse_failed, run_checks
from kvik.bench.evidence import Result
from kvik.bench.ladder.claims import compare_claims
from kvik.bench.ladder.presets import Setting, contest_for, fitted
from kvik.bench.ladder.quality import measure_quality
from kvik.bench.ladder.rounds import hold, quick_roofline
from kvik.bench.ladder.rungs import options_of
from kvik.bench.ladder.scenes import QUICK
from kvik.bench.machine import roofline
from kvik.bench.measure import Progress, Repeat
from kvik.config import EngineConfig
from kvik.engine.build import open_model

ONCE = Repeat(warmups=0, least=1, most=1)
QUICK_SEATS = 4
QUICK_CHUNK = 64
"""Tokens a step: small enough that a quick long prompt is in pieces."""


@dataclasses.dataclass(frozen=True)
class Depth:
    """How thoroughly quality is looked at: tokens scored, and questions asked of each task."""

    tokens: int = 20_000
    per_task: int = 40


LONGEST_QUESTION = 2048
QUICK_DEPTH = Depth(tokens=400, per_task=1)


def climb(preset: str, setting: Setting, repeat: Repeat, depth: Depth, progress: Progress, quick: bool) -> Result:
    """One preset's result. Raises EvidenceError if an identity breaks or answers differ where they must not."""
    contest, room = contest_for(preset, setting)
    further: dict[str, Any] = {"quick": quick}
    if preset == "rungs":
        progress("quality: M6 and M7 score the same text")
        further["quality"] = measure_quality(quality_configs(setting), depth.tokens, depth.per_task)
    result = hold(contest, room, repeat, progress, quick_roofline if quick else roofline, **further)
    result["claims"] = compare_claims(result)
    result["checks"] = run_checks(result)
    refuse_failed(result["checks"])
    return result


def quality_configs(setting: Setting) -> dict[str, EngineConfig]:
    """M6 and M7 with room for windows and questions in place of a scene."""
    model = EngineConfig.from_options(**setting.engine)
    longest = min(LONGEST_QUESTION, open_model(model).spec.max_position)
    room = {"max_num_seqs": 16, "max_model_len": longest}
    return {name: EngineConfig.from_options(**{**setting.engine, **options_of(name), **room}) for name in ("M6", "M7")}


def quick_setting(setting: Setting) -> Setting:
    """The same engine on scenes of seconds."""
    return Setting(setting.engine, fitted(QUICK, setting.engine), QUICK_SEATS, QUICK_CHUNK)


def climb_all(
    presets: Sequence[str], setting: Setting, repeat: Repeat, progress: Progress, *, quick: bool = False
) -> list[Result]:
    """A result for each preset. Quick ones take each side there and back once, on small scenes: they assert, and
    their speeds mean little.
    """
    if quick:
        setting, repeat = quick_setting(setting), ONCE
    depth = QUICK_DEPTH if quick else Depth()
    return [climb(preset, setting, repeat, depth, progress, quick) for preset in presets]
