"""The trials: for each promise something that goes on for a while, and what must be true while it does and afterwards.

A trial returns figures; whatever is not as promised stands in its findings. After every trial the server must be at
rest: ready, nothing held by anybody, as many files open as before, and a hundred answers exact.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from tools.soak.asks import Ask, make_ask, random_ask
from tools.soak.crowd import LEFT, Ledger, run_crowd
from tools.soak.server import OwnServer, Server
from tools.soak.wire import Connection, LostError, request_bytes

CLIENTS = 64
CONTROLS = 100
HANG_S = 10.0
"""Within which a hang must be noticed."""
SLACK_S = 2.0
POOL_THREADS = 4


@dataclass
class Trial:
    """How long one goes on, and what it has found: until `seconds` are over or `count` of whatever it counts."""

    seconds: float
    count: int = 10**9
    seed: int = 0
    clients: int = CLIENTS
    slack_s: float = SLACK_S
    """Beyond what is promised, for a machine that does something else as well."""
    ledger: Ledger = field(default_factory=Ledger)
    figures: dict[str, Any] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds until its end."""
        return self.started + self.seconds - time.monotonic()

    @property
    def patience(self) -> float:
        """By how much limits of time are stretched: 1 at length; more in the tests, which share their machine."""
        return max(1.0, self.slack_s / SLACK_S)

    def find(self, wrong: bool, said: str) -> None:
        """Write something down if it is wrong."""
        if wrong:
            self.findings.append(said)

    def asks(self, faults: bool = True) -> Iterator[Ask]:
        """Random ones, as many and as long as the trial goes on."""
        rng = random.Random(self.seed)
        for number in range(self.count):
            if self.left_s <= 0:
                return
            yield random_ask(rng, self.seed * 10**9 + number, faults)


class Play(Protocol):
    """What is done with a server for a while."""

    __name__: str

    def __call__(self, server: Server, trial: Trial) -> Awaitable[None]:
        """All of it."""


def own(server: Server) -> OwnServer:
    """The server, if its process is ours. Raises ValueError."""
    if not isinstance(server, OwnServer):
        raise ValueError("this promise needs a server of our own: --own-server")
    return server


async def mixed(server: Server, trial: Trial) -> None:
    """1, 2, 7: any requests from any clients; each ends once and every byte is right."""
    before = (await server.stats())["engine"]
    await run_crowd(server.address, trial.asks(), trial.clients, trial.ledger)
    trial.findings += trial.ledger.problems()
    after = (await server.until(is_at_rest))["engine"]
    trial.figures["tokens"] = after["generated_tokens"] - before["generated_tokens"]
    trial.figures["preemptions"] = after["preemptions"] - before["preemptions"]


async def overload(server: Server, trial: Trial) -> None:
    """11: far more load than the server can do, again and again, all prompts new; its memory does not grow."""
    levels: list[int] = []
    while trial.left_s > 0 and len(levels) < trial.count:
        part = Trial(trial.left_s, 4 * trial.clients, seed=trial.seed * 10**6 + len(levels), ledger=trial.ledger)
        await run_crowd(server.address, part.asks(), trial.clients, trial.ledger, lambda: 0.05)
        await server.until(is_at_rest)
        levels.append(own(server).rss_bytes())
    trial.findings += trial.ledger.problems(may_fail=True)
    if levels:
        trial.figures |= {"rounds": len(levels), "rss_bytes": levels}
        settled = levels[len(levels) // 2]
        trial.find(levels[-1] > 1.05 * settled, f"memory grew from {settled} to {levels[-1]} bytes")


async def vanish(server: Server, trial: Trial) -> None:
    """20: clients that connect, send a part or all of a request and are gone, by FIN and by RST."""
    rng, numbers = random.Random(trial.seed), iter(range(trial.count))

    async def client() -> None:
        for number in numbers:
            if trial.left_s <= 0:
                return
            trial.ledger.sent += 1
            await come_and_go(server, rng, number)
            trial.ledger.ends[LEFT] += 1

    await asyncio.gather(*(client() for _ in range(8)))


async def come_and_go(server: Server, rng: random.Random, number: int) -> None:
    """One of them."""
    asked = make_ask(f"gone {number}", chat=number % 2 == 0, stream=number % 3 != 0, max_tokens=60)
    data = request_bytes(server.address, "POST", asked.path, asked.body)
    connection = Connection(server.address)
    try:
        await connection.send(data if rng.random() < 0.5 else data[: rng.randrange(len(data))])
        if rng.random() < 0.2:
            await asyncio.sleep(rng.random() * 0.02)
    finally:
        connection.close(reset=rng.random() < 0.5)


async def kill(server: Server, trial: Trial) -> None:
    """25, 32: kill -9 of the engine under load: it comes back by itself, requests are told, no byte is wrong."""
    mine, waits = own(server), list[tuple[float, float]]()
    rng = random.Random(trial.seed)
    _, idle_s = await mine.replace_engine()
    async with crowd_behind(server, trial):
        while len(waits) < trial.count and (trial.left_s > 0 or not waits):
            await asyncio.sleep(rng.random() * 0.5)
            waits.append(await mine.replace_engine())
    noticed_s, ready_s = (max(times) for times in zip(*waits, strict=True))
    trial.figures |= {"kills": len(waits), "idle_restart_s": round(idle_s, 2), "restart_s_max": round(ready_s, 2)}
    trial.figures["noticed_s_max"] = round(noticed_s, 3)
    trial.find(noticed_s > HANG_S, f"without an engine it was ready for {noticed_s:.1f} s")
    trial.find(ready_s > idle_s + trial.slack_s, f"ready again after {ready_s:.1f} s, {idle_s:.1f} s when idle")


async def hang(server: Server, trial: Trial) -> None:
    """26, 32: the engine hangs under load: noticed in time, health says so, dumped, replaced."""
    mine, noticed = own(server), list[float]()
    turns = itertools.count()
    while (trial.left_s > 0 or not noticed) and next(turns) < trial.count:
        async with crowd_behind(server, trial):
            start = time.monotonic()
            stuck = asyncio.ensure_future(read_error(server, make_ask("[[hang@3]]", stream=True)))
            while await server.is_ready():
                await asyncio.sleep(0.02)
            noticed.append(time.monotonic() - start)
            said = await stuck
            trial.find("error" not in said or "stop" in said, f"the request that hung was told {said!r}")
            await server.until_ready()
    trial.figures |= {"hangs": len(noticed), "noticed_s_max": round(max(noticed), 2)}
    trial.find(max(noticed) > HANG_S + trial.slack_s, f"a hang was noticed after {max(noticed):.1f} s")
    trial.find("most recent call first" not in mine.log, "no stack in the log")


async def faults(server: Server, trial: Trial) -> None:
    """27, 28: requests that raise, find no memory or turn into NaN, among others; only they fail."""
    before = await server.stats()
    rng = random.Random(trial.seed)

    def asks() -> Iterator[Ask]:
        for number, ask in enumerate(trial.asks(faults=False)):
            fault = rng.choice(["raise", "oom", "nan"])
            at = rng.choice(["", "@1", "@2", "@7"])
            text = f"number {trial.seed}.{number} [[{fault}{at}]]"
            guilty = make_ask(text, chat=rng.random() < 0.5, stream=rng.random() < 0.5, client_fault=fault)
            yield guilty if rng.random() < 0.2 else ask

    await run_crowd(server.address, asks(), trial.clients, trial.ledger)
    trial.findings += trial.ledger.problems()
    stats = await server.until(is_at_rest)
    counted = stats["engine"]["numerical_errors"] - before["engine"]["numerical_errors"]
    trial.figures |= {"failed": trial.ledger.ends["failed"], "numerical_errors": counted}
    trial.find(counted == 0, "no NaN was counted")
    trial.find(stats["health"]["restarts"] != before["health"]["restarts"], "the engine was restarted")


SMALL = ("--max-num-seqs", "4", "--max-queued-requests", "40")
"""Flags of a server that 64 clients overload."""


async def play(server: Server, trial: Trial, what: Play) -> None:
    """One trial, and what must be true after it."""
    await server.until_ready()
    await controls(server, trial)
    files = await files_at_rest(server)
    trial.started = time.monotonic()
    await what(server, trial)
    await server.until_ready()
    await controls(server, trial)
    left = await files_at_rest(server)
    if files is not None and left is not None:
        # Some threads are started when there is first something to do for them.
        grown = left[0] != files[0] or left[1] > files[1] + POOL_THREADS
        trial.find(grown, f"{files} files and threads before, {left} after")
    trial.figures |= {"sent": trial.ledger.sent, "ends": dict(trial.ledger.ends)}


async def controls(server: Server, trial: Trial) -> None:
    """A hundred exact answers (fewer in the tests), and the books of a server at rest."""
    ledger = Ledger()
    asks = (
        make_ask(f"control {n}", stream=n % 2 == 0, chat=n % 3 == 0, client_options=server.options)
        for n in range(CONTROLS if trial.patience == 1 else CONTROLS // 5)
    )
    await run_crowd(server.address, asks, 8, ledger)
    trial.findings += [f"control: {said}" for said in ledger.problems()]
    engine = (await server.until(is_at_rest))["engine"]
    ended = sum(engine["requests_ended"].values())
    trial.find(engine["requests_accepted"] != ended, f"accepted {engine['requests_accepted']}, ended {ended}")
    held = engine["blocks_free"] + engine["blocks_cached"]
    trial.find(held != engine["blocks_total"], f"{engine['blocks_total']} blocks, {held} free or cached")


def is_at_rest(stats: Any) -> bool:
    """Whether nobody holds anything; the connection that asks is there itself."""
    engine, server = stats["engine"], stats["server"]
    if engine is None or stats["health"]["state"] != "ready":
        return False
    held = ("requests_open", "requests_queued", "tokens_queued", "seats_taken", "body_bytes")
    busy = ("requests_waiting", "requests_running", "blocks_used")
    # /stats is a request of its own.
    return sum(server[name] for name in held) <= 1 and not any(engine[name] for name in busy)


async def files_at_rest(server: Server) -> tuple[int, int] | None:
    """Open files and threads once no connection but our own is left; None for a server that is not ours."""
    if not isinstance(server, OwnServer):
        return None
    await server.until(lambda stats: stats["server"]["connections"] <= 1)
    await asyncio.sleep(0.1)
    return server.num_files(), server.num_threads()


@contextlib.asynccontextmanager
async def crowd_behind(server: Server, trial: Trial) -> AsyncIterator[None]:
    """Clients that go on asking meanwhile; requests may be refused or fail, but none is lost or wrong."""
    stop, rng = asyncio.Event(), random.Random(trial.seed)

    def asks() -> Iterator[Ask]:
        for number in itertools.count():
            if stop.is_set():
                return
            yield random_ask(rng, trial.ledger.sent + number, faults=False)

    crowd = asyncio.ensure_future(run_crowd(server.address, asks(), trial.clients, trial.ledger, lambda: 0.05))
    try:
        yield
        await asyncio.sleep(0.3)
    finally:
        stop.set()
        await crowd
    trial.findings += trial.ledger.problems(may_fail=True)


async def read_error(server: Server, ask: Ask) -> str:
    """All that comes back of a request that fails."""
    connection = Connection(server.address)
    try:
        await connection.send(request_bytes(server.address, "POST", ask.path, ask.body))
        return (await connection.body(await connection.head())).decode()
    except LostError as error:
        return f"lost: {error}"
    finally:
        connection.close()
