"""Trials of what is guarded: keys and the routes behind them, and the log and metrics, which hold no client's text.

Knows nothing of limits.
"""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import time
from typing import Any
from urllib.parse import quote

from kvik.server.auth import KeyRing
from tools.soak.asks import CHAT, COMPLETIONS, make_ask
from tools.soak.bad_inputs import GOOD_CHAT, GOOD_PROMPT
from tools.soak.hostile import all_that_comes, at_once
from tools.soak.replies import require
from tools.soak.server import Server
from tools.soak.trials import Trial, is_at_rest, own
from tools.soak.wire import Address, Connection, request_bytes

KEY, OTHER_KEY = "correct-horse-battery", "the-second-key-of-ours"
KEY_FLAGS = ("--api-key", KEY, "--api-key", OTHER_KEY)
NASTY = "\r\n2026-01-01T00:00:00.000Z info forged x=1\x1b[31m\0\u2028\x7f"
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info|warning|error) [a-z_]+( [ -~]*)?")


async def doors(server: Server, trial: Trial) -> None:
    """42: paths and keys of every spelling; nothing but the public list is answered without a key."""
    rng = random.Random(trial.seed)
    wrong = (None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY)

    async def attempt(number: int) -> str:
        path, key = spelled(rng), rng.choice(wrong)
        headers = {} if key is None else {"Authorization": key}
        headers |= {rng.choice(["X-Forwarded-For", "X-Original-URL", "X-Rewrite-URL", "Forwarded"]): "/health"}
        method, body = rng.choice([("GET", None), ("POST", GOOD_PROMPT), ("POST", GOOD_CHAT), ("HEAD", None)])
        data = request_bytes(Address("", 0), method, path, body, headers | {"Connection": "close"})
        said = await all_that_comes(server.address, data, ends=False)
        status = int(said[9:12])
        require(status in (400, 401, 404, 405) or is_public(path, said), status, "to", method, path, key)
        return str(status)

    await at_once(trial, attempt)
    trial.figures |= await asyncio.to_thread(timed_keys, min(trial.count, 200_000), trial.seed)
    trial.find(
        abs(trial.figures["time_of_key_r"]) > 0.05 * trial.patience, "the time of a key depends on its beginning"
    )


def spelled(rng: random.Random) -> str:
    """A path that leads to what is guarded, or looks so."""
    path = rng.choice(
        ["/v1/models", "/stats", "/metrics", "/events", COMPLETIONS, CHAT, "/tokenize", "/v1/models/fake"]
    )
    for _ in range(rng.randrange(3)):
        place, kind = rng.randrange(len(path)), rng.randrange(6)
        if kind == 0:
            path = path.replace("/", rng.choice(["//", "/./", "/x/../", "/%2e/", "%2f", "/health/../"]), 1)
        elif kind == 1:
            path = path[:place] + f"%{ord(path[place]):02x}" + path[place + 1 :]
        elif kind == 2:
            path += rng.choice(["/", "?x=/health", "#/health", ";/health", "%00", "/.", "%2e%2e/health", "%20"])
        elif kind == 3:
            path = rng.choice(["/health/..", "/page/..", "/health/live/../.."]) + path
        elif kind == 4:
            path = path[:place] + path[place:].upper()
        else:
            path = "http://localhost" + path if path.startswith("/") else path
    return path


def is_public(path: str, said: bytes) -> bool:
    """Whether this may be answered to anybody: health, and the page with its files."""
    body = said.partition(b"\r\n\r\n")[2]
    secrets = (b'"object"', b'"engine"', b"kvik_", b"data: ")
    return not any(secret in body for secret in secrets) and re.search(r"health|page|localhost/?$", path) is not None


def timed_keys(tries: int, seed: int) -> dict[str, float]:
    """How the time to refuse a key goes with how much of it is right: the correlation over so many tries."""
    rng, ring = random.Random(seed), KeyRing((KEY, OTHER_KEY))
    rights, times = [], []
    for _ in range(tries):
        right = rng.randrange(len(KEY))
        header = f"Bearer {KEY[:right]}{'x' * (len(KEY) - right)}".encode()
        start = time.perf_counter_ns()
        ring.find(header)
        times.append(time.perf_counter_ns() - start)
        rights.append(right)
    limit = sorted(times)[int(0.99 * len(times))]
    kept = [(right, took) for right, took in zip(rights, times, strict=True) if took <= limit]
    return {"keys_timed": tries, "time_of_key_r": round(statistics.correlation(*zip(*kept, strict=True)), 4)}


async def lines(server: Server, trial: Trial) -> None:
    """43: line breaks, escapes and NUL wherever a client can write; a plain line for each event, no text of theirs."""
    mine, series = own(server), set[str]()
    logged = len(mine.log.splitlines())

    async def attempt(number: int) -> str:
        secret = f"secret-{trial.seed}-{number}"
        nasty = f"{secret}{NASTY}"
        kind = number % 4
        fields: dict[str, Any] = {nasty[7:]: nasty, "stop": nasty}
        if kind == 0:
            asked = make_ask(nasty, chat=True, user=nasty, metadata={nasty[:60]: "x"})
        elif kind == 1:
            asked = make_ask(nasty, **fields)
        else:
            asked = make_ask(secret, model=nasty) if kind == 2 else make_ask(secret)
        path = asked.path if kind < 3 else "/v1/models/" + quote(nasty)
        headers = {"x-request-id": f"id-{number}", "User-Agent": "x"}
        connection = Connection(server.address)
        await connection.send(request_bytes(server.address, "POST" if kind < 3 else "GET", path, asked.body, headers))
        head = await connection.head()
        await connection.body(head)
        connection.close()
        require(head.status in (200, 400, 404), head.status)
        return str(head.status)

    for number in range(-8, 0):
        await attempt(number)
    await metric_names(server)
    series |= await metric_names(server)
    await at_once(trial, attempt, clients=8)
    await server.until(is_at_rest)
    new = mine.log.splitlines()[logged:]
    own_lines = [line for line in new if re.search(r" id=id-\d", line)]
    trial.figures |= {"lines": len(own_lines), "series": len(series)}
    trial.find(len(own_lines) != trial.ledger.sent, f"{trial.ledger.sent} requests and {len(own_lines)} lines")
    trial.find(not all(LINE.fullmatch(line) for line in new), "a line of another form")
    # A path and the names of unknown fields are what a request is known by; they stand in its line, escaped.
    told = [line for line in new if "secret-" in re.sub(r' (path|ignored)=(\S+|".*?[^\\]")', "", line)]
    trial.find(bool(told), f"{len(told)} lines hold text of a client, as {told[:1]}")
    made = await metric_names(server) - series
    trial.find(bool(made), f"requests made {len(made)} series, as {sorted(made)[:3]}")


async def metric_names(server: Server) -> set[str]:
    """All series, with their labels."""
    connection = Connection(server.address)
    await connection.send(request_bytes(server.address, "GET", "/metrics"))
    text = (await connection.body(await connection.head())).decode()
    connection.close()
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}
