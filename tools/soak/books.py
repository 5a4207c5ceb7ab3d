"""Trials of parts in this process and of allocations that fail: the scheduler's books, and memory that is refused.

The scheduler's random lives are those of tests/fuzz, which need pytest and hypothesis to be installed. Knows nothing of
HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
import sys
import tempfile
from pathlib import Path

from tools.soak.crowd import FINISHED, run_crowd
from tools.soak.server import OwnServer
from tools.soak.trials import Trial, controls, is_at_rest

FUZZ = Path(__file__).resolve().parents[2] / "tests" / "fuzz"
POINTS = {
    "an array of the model": "kvik.runners.fake.runner FakeRunner run MemoryError 3",
    "an array of the model, again and again": "kvik.runners.fake.runner FakeRunner run MemoryError 1",
    "a block of the cache": "kvik.scheduler.block_pool BlockPool take MemoryError 40",
    "a frame of the engine": "kvik.engine.remote.channel EngineChannel send OSError 40",
    "a frame of the server": "kvik.engine.remote.channel FrontChannel send OSError 40",
}
"""What fails: module, class, method, what it raises; the smallest number of calls between two failures."""
FAILING = """
import importlib, os, pathlib, random
folder = pathlib.Path(__file__).parent
module, kind, name, raised, first = (folder / "point").read_text().split()
try:
    cls = getattr(importlib.import_module(module), kind)
except ImportError:
    cls = None
if cls is not None:
    chance, plain, left = random.Random(os.getpid()), getattr(cls, name), [int(first)]
    def failing(*args, **kwargs):
        if (folder / "on").exists():
            left[0] -= 1
            if left[0] <= 0:
                left[0] = int(first) + chance.randrange(3 * int(first))
                with (folder / "failed").open("a") as file:
                    file.write("x")
                raise {"MemoryError": MemoryError, "OSError": OSError}[raised]("as the trial wishes")
        return plain(*args, **kwargs)
    setattr(cls, name, failing)
"""
"""Runs first in the server's Python and in its engine's."""


async def scheduler(trial: Trial) -> None:
    """16: random lives of the scheduler, its books checked after every step; each request ends, nothing is held."""
    sys.path += [str(FUZZ), str(FUZZ.parent)]
    random_life = importlib.import_module("test_scheduler_machine").random_life
    steps = lives = 0
    while trial.left_s > 0 and steps < trial.count:
        steps += random_life(trial.seed * 10**6 + lives).num_steps
        lives += 1
        if lives % 100 == 0:
            await asyncio.sleep(0)
    trial.figures |= {"lives": lives, "steps": steps}


async def no_memory(trial: Trial) -> None:
    """29: allocations and sends that fail now and then, at every point in turn; requests are told, nothing is lost."""
    share = trial.seconds / len(POINTS)
    for place, point in POINTS.items():
        before = trial.ledger.ends[FINISHED]
        failed = await fail_at(trial, point, share)
        trial.figures[place] = {"failed": failed, "finished": trial.ledger.ends[FINISHED] - before}
        trial.find(not failed, f"{place} never failed")
        trial.find(trial.ledger.ends[FINISHED] == before, f"nothing was finished while {place} failed")
    trial.findings += trial.ledger.problems(may_fail=True)


async def fail_at(trial: Trial, point: str, seconds: float) -> int:
    """A crowd while one thing fails; how often it did. The server is at rest and exact when it fails no more."""
    rng = random.Random(trial.seed)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as held:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(FAILING)
        (folder / "point").write_text(point)
        server = held.enter_context(OwnServer(python=folder))
        await server.until_ready()
        (folder / "on").touch()
        part = Trial(seconds, trial.count, rng.randrange(10**6), trial.clients, trial.slack_s)
        await run_crowd(server.address, part.asks(faults=False), 16, trial.ledger, lambda: 0.05)
        (folder / "on").unlink()
        await server.until_ready()
        await server.until(is_at_rest)
        await controls(server, trial)
        failed = folder / "failed"
        return failed.stat().st_size if failed.exists() else 0
