"""Trials of a server's beginning and end, each with servers of their own: SIGTERM, SIGKILL, and what cannot start.

A stream that a server's end cuts off must have been told so. Knows nothing of servers that go on.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import kvik
from tools.soak.asks import make_ask
from tools.soak.pulse import percentile
from tools.soak.replies import check_error, require
from tools.soak.server import PATIENCE_S, OwnServer, free_port
from tools.soak.trials import Trial
from tools.soak.wire import Address, Connection, LostError, ask, request_bytes

MODEL = "fake:length=100,step_ms=5"
DRAIN_S = 0.3
START_S = 3.0
"""For what cannot start to say so."""
READERS = 8
UNSTARTABLE: tuple[tuple[str, ...], ...] = (
    ("--model", "/no/such/model"),
    ("--model", "fake:nonsense=1"),
    ("--model", "fake:", "--port", "70000"),
    ("--model", "fake:", "--max-num-seqs", "0"),
    ("--model", "fake:", "--no-such-flag"),
    ("--model", "fake:", "--host", "0.0.0.0"),
)


async def terminate(trial: Trial) -> None:
    """22: SIGTERM at a random moment under load; streams finish or are told, others are refused, it exits with 0."""
    rng, took, second = random.Random(trial.seed), list[float](), list[float]()
    ends, runs = Counter[str](), 0
    while trial.left_s > 0 and runs < trial.count:
        runs += 1
        with OwnServer(MODEL, "--drain-timeout", str(DRAIN_S)) as server:
            await server.until_ready()
            child = server.engine_pid
            readers = [asyncio.ensure_future(read_until_end(server.address, n, ends)) for n in range(READERS)]
            await asyncio.sleep(rng.random() * 0.7)
            start = time.monotonic()
            server.signal(signal.SIGTERM)
            if runs % 2 == 0:
                await asyncio.sleep(rng.random() * DRAIN_S / 2)
                start = time.monotonic()
                server.signal(signal.SIGTERM)
            status = await server.status()
            (took if runs % 2 else second).append(time.monotonic() - start)
            await asyncio.gather(*readers)
            trial.find(status != 0 and runs % 2 == 1, f"exit status {status}")
            trial.find(await stays(child), "the engine outlived its server")
    trial.ledger.sent, trial.ledger.ends = sum(ends.values()), ends
    trial.figures |= {"runs": runs, "exit_s_max": round(max(took), 2)}
    if second:
        trial.figures["exit_s_max_after_second"] = round(max(second), 2)
        trial.find(max(second) > 2.0 * trial.patience, f"after a second signal it went on for {max(second):.1f} s")
    trial.find(max(took) > DRAIN_S + 2.0 * trial.patience, f"it took {max(took):.1f} s to end")
    trial.find(bool(ends["cut"]), f"{ends['cut']} streams were cut without a word")


async def read_until_end(address: Address, number: int, ends: Counter[str]) -> None:
    """Stream after stream until the server is gone or refuses; how each ended."""
    for turn in range(10**6):
        connection = Connection(address)
        try:
            end = await read_one(connection, number * 1000 + turn)
        except LostError as error:
            # Before a reply begins nothing is owed: a connection that is refused or closed is tried elsewhere.
            end = "cut" if "within" in str(error) else "no server"
        finally:
            connection.close()
        ends[end] += 1
        if end != "finished":
            return


async def read_one(connection: Connection, number: int) -> str:
    """One stream; how it ended."""
    asked = make_ask(f"to the end {number}", stream=True, max_tokens=100, ignore_eos=True)
    await connection.send(request_bytes(connection.address, "POST", asked.path, asked.body))
    head = await connection.head()
    if head.status != 200:
        code = check_error(head.status, head.headers, json.loads(await connection.body(head)))
        require(head.status in (503, 500), "refused with", head.status, code)
        return f"refused {head.status}"
    last = ""
    try:
        async for data in connection.events(head):
            last = data
    except LostError as error:
        if '"error"' not in last:
            raise LostError(f"within a stream: {error}") from error
    if last == "[DONE]":
        return "finished"
    require('"error"' in last or '"finish_reason":"' in last, "the last word of a stream is", last)
    return "told"


async def stays(pid: int) -> bool:
    """Whether a process is still there after a moment."""
    end = time.monotonic() + 5.0
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        if " Z " in Path(f"/proc/{pid}/stat").read_text():
            return False
        await asyncio.sleep(0.02)
    return Path(f"/proc/{pid}").exists()


async def murder(trial: Trial) -> None:
    """23: SIGKILL of the server at a random moment; the next one on its port starts as if nothing had been."""
    rng, port, starts = random.Random(trial.seed), free_port(), list[float]()
    runs = 0
    while (trial.left_s > 0 and runs < trial.count) or runs < 2:
        begun = time.monotonic()
        with OwnServer(MODEL, port=port) as server:
            await server.until_ready()
            starts.append(time.monotonic() - begun)
            child, ends = server.engine_pid, Counter[str]()
            readers = [asyncio.ensure_future(read_until_end(server.address, n, ends)) for n in range(READERS)]
            await asyncio.sleep(rng.random() * 0.5)
            server.signal(signal.SIGKILL)
            await server.status()
            trial.find(await stays(child), "the engine outlived its server")
            await asyncio.gather(*readers)
        runs += 1
        trial.ledger.sent += sum(ends.values())
        trial.ledger.ends += ends
    first, *later = starts
    trial.figures |= {"runs": runs, "first_start_s": round(first, 2), "start_s_max": round(max(later), 2)}
    trial.find(max(later) > first + 2.0 * trial.patience, f"a start took {max(later):.1f} s, the first {first:.1f} s")


async def starts(trial: Trial) -> None:
    """24: live and not ready while it loads; what cannot start says so in one line, soon."""
    took, runs = list[float](), 0
    while trial.left_s > 0 and runs < trial.count:
        runs += 1
        port = free_port()
        with OwnServer("fake:", port=port) as server:
            await check_start(server)
            used = ("--model", "fake:", "--port", str(port))
            for args in (*UNSTARTABLE, used):
                took.append(await fail_to_start(trial, args))
    trial.figures |= {"runs": runs, "said_s_p50_max": [round(percentile(took, part), 2) for part in (50, 100)]}
    trial.find(max(took) > START_S * trial.patience, f"what cannot start said so after {max(took):.1f} s")


async def check_start(server: OwnServer) -> None:
    """A server that begins: live as soon as it listens, ready only after it was not."""
    end, seen = time.monotonic() + PATIENCE_S, list[tuple[int, int]]()
    while not seen or seen[-1][1] != 200:
        require(time.monotonic() < end, "not ready:", seen[-3:])
        try:
            ready = 200 if await server.is_ready() else 503
            seen.append(((await ask(server.address, "GET", "/health/live"))[0].status, ready))
        except LostError:
            require(not seen, "it listened and stopped listening")
            await asyncio.sleep(0.005)
    require({live for live, _ in seen} == {200}, "not live:", seen)


async def fail_to_start(trial: Trial, args: tuple[str, ...]) -> float:
    """Start what cannot; seconds until it has said so."""
    start = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kvik", "serve", *args),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(Path(kvik.__file__).parents[1])},
    )
    said = (await asyncio.wait_for(process.communicate(), PATIENCE_S))[1].decode().splitlines()
    errors = [line for line in said if "error" in line]
    trial.find(process.returncode == 0, f"{args} exits with 0")
    trial.find(len(errors) != 1 or "Traceback" in "".join(said), f"{args} says {said}")
    return time.monotonic() - start
