"""Runs a trial of tools/soak for a moment and asks that nothing was found."""

from __future__ import annotations

import asyncio

from tools.soak.server import OwnServer
from tools.soak.trials import CLIENTS, Play, Trial, play

MOMENT_S = 60.0
"""Nothing here takes so long, unless the machine does something else meanwhile."""


def hold(server: OwnServer, what: Play, count: int, seed: int = 0, clients: int = CLIENTS) -> Trial:
    """The trial once it is over, with its figures."""
    trial = Trial(MOMENT_S, count, seed, clients, slack_s=20.0)
    asyncio.run(play(server, trial, what))
    assert not trial.findings, trial.findings
    return trial
