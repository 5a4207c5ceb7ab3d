"""Trials of faults inside: no disk for the log, broken frames, stopped processes, a clock that jumps, no memory.

Those of frames, of allocations and of the scheduler need no server: they take the part itself. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import tempfile
from collections import Counter
from pathlib import Path

from kvik.engine.remote.channel import ChannelError, FrameReader, FrameWriter
from kvik.engine.remote.frames import Failed, Moved, Update
from tools.soak.crowd import run_crowd
from tools.soak.server import OwnServer, Server
from tools.soak.trials import Trial, is_at_rest, mixed, own, play

STOPPED_S = 3.0
"""Longest time that a process is stopped; a hang is one of 10 s."""
JUMPING = """
import random, time
_true, _chance = time.time, random.Random(7)
time.time = lambda: _true() + _chance.choice([-3600.0, 0.0, 3600.0])
"""
"""Runs first in the server's Python and in its engine's."""


async def full_disk(trial: Trial) -> None:
    """30: a log that cannot be written; the server goes on as if it could."""
    with OwnServer(log=Path("/dev/full")) as server:
        await play(server, trial, mixed)


async def jumping_clock(trial: Trial) -> None:
    """33: a wall clock that is an hour ahead or behind each time it is asked; nothing is late that was not to be."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(JUMPING)
        with OwnServer(python=Path(folder)) as server:
            await play(server, trial, mixed)
            hours = {line[11:13] for line in server.log.splitlines() if " request " in line}
            trial.find(len(hours) < 2, "the clock did not jump")


async def pauses(server: Server, trial: Trial) -> None:
    """33: the engine or the server stopped for a moment, again and again, under load; nothing fails or is lost."""
    mine, rng = own(server), random.Random(trial.seed)
    before = (await server.stats())["health"]["restarts"]
    stopped = 0

    async def stop_now_and_then() -> None:
        nonlocal stopped
        while True:
            await asyncio.sleep(rng.random())
            pid = rng.choice([mine.pid, mine.engine_pid])
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(rng.random() * STOPPED_S)
            finally:
                os.kill(pid, signal.SIGCONT)
            stopped += 1

    stopping = asyncio.ensure_future(stop_now_and_then())
    try:
        await run_crowd(server.address, trial.asks(faults=False), trial.clients, trial.ledger)
    finally:
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
    trial.findings += trial.ledger.problems()
    restarts = (await server.until(is_at_rest))["health"]["restarts"] - before
    trial.figures |= {"stops": stopped, "restarts": restarts}
    trial.find(restarts > 0, f"the engine was restarted {restarts} times")


async def frames(trial: Trial) -> None:
    """31: frames that were changed, cut, repeated, reordered or lost; what is read is what was sent, then an error."""
    rng, ends = random.Random(trial.seed), Counter[str]()
    for number in range(trial.count):
        if trial.left_s <= 0:
            break
        sent = [frame(rng, n) for n in range(rng.randint(1, 4))]
        writer = FrameWriter()
        whole = [writer.pack(each) for each in sent]
        data = broken(rng, whole)
        ends[read_broken(trial, sent, whole, data, rng)] += 1
        trial.ledger.sent = number + 1
        if number % 1000 == 0:
            await asyncio.sleep(0)
    trial.ledger.ends = ends


def frame(rng: random.Random, number: int) -> Moved | Failed:
    """An event as an engine sends it."""
    if rng.random() < 0.2:
        return Failed(f"r{number}", "EngineError", "it was lost")
    ids = [rng.randrange(2**31) for _ in range(rng.randrange(9))]
    return Moved([Update(f"r{number}", 0, "né 日本"[: rng.randrange(6)], ids)])


def broken(rng: random.Random, whole: list[bytes]) -> bytes:
    """The frames with one thing wrong."""
    kind, data = rng.randrange(5), b"".join(whole)
    if kind == 0:
        place = rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == 1:
        return data[: rng.randrange(1, len(data))]
    if kind == 2:
        place = rng.randrange(len(data))
        return data[:place] + rng.randbytes(rng.randint(1, 9)) + data[place:]
    if kind == 3 and len(whole) > 1:
        return b"".join(rng.sample(whole, len(whole)))
    place = rng.randrange(len(whole))
    return b"".join([*whole[: place + 1], whole[place], *whole[place + 1 :]])


def read_broken(trial: Trial, sent: list[Moved | Failed], whole: list[bytes], data: bytes, rng: random.Random) -> str:
    """Read it in pieces; how that ended. Whatever was read must be the beginning of what was sent."""
    reader: FrameReader[Moved | Failed] = FrameReader(Moved | Failed)
    read: list[Moved | Failed] = []
    try:
        at = 0
        while at < len(data):
            size = rng.randint(1, 100)
            read += reader.feed(data[at : at + size])
            at += size
        reader.finish()
    except ChannelError:
        trial.find(read != sent[: len(read)], f"{read} was read of {sent}")
        return "noticed"
    trial.find(read != sent[: len(read)], f"{read} was read of {sent}, and no error")
    complete = data in list(itertools.accumulate(whole))
    trial.find(not complete, f"{data.hex()} was taken for sound")
    return "ends between two frames"
