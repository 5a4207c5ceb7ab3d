"""Runs a trial of tools/soak for a moment and asks that nothing was found."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tools.soak.server import OwnServer
from tools.soak.trials import CLIENTS, Play, Trial, play

MOMENT_S = 60.0
"""Nothing here takes so long, unless the machine does something else meanwhile."""
SLACK_S = 20.0


def hold(
    server: OwnServer, what: Play, count: int, seed: int = 0, clients: int = CLIENTS, except_for: str | None = None
) -> Trial:
    """The trial once it is over, with its figures. `except_for`: words of a finding that docs/reliability.md lists as
    not reached.
    """
    trial = Trial(MOMENT_S, count, seed, clients, slack_s=SLACK_S)
    asyncio.run(play(server, trial, what))
    findings = [each for each in trial.findings if except_for is None or except_for not in each]
    assert not findings, findings
    return trial


def hold_alone(what: Callable[[Trial], Awaitable[None]], count: int, seed: int = 0) -> Trial:
    """The same for a trial that starts its servers itself, or needs none."""
    trial = Trial(MOMENT_S, count, seed, slack_s=SLACK_S)

    async def all_of_it() -> None:
        await what(trial)

    asyncio.run(all_of_it())
    assert not trial.findings, trial.findings
    return trial
