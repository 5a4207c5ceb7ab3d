"""Trials of hostile input: mutated requests, the table of bad ones, limits, and large ones.

A server must answer each with a status below 500, soon, and be as well afterwards. Knows nothing of faults inside.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from tools.soak import bad_inputs
from tools.soak.asks import CHAT, COMPLETIONS
from tools.soak.bad_inputs import ANY, GOOD_CHAT, GOOD_PROMPT, Row
from tools.soak.pulse import percentile, pulse
from tools.soak.replies import WrongError, check_error, require
from tools.soak.row_check import check_row
from tools.soak.server import Server
from tools.soak.slow import open_socket
from tools.soak.trials import Trial, is_at_rest, own
from tools.soak.wire import Address, LostError, request_bytes

AT_ONCE = 32
FUZZ_FLAGS = (
    *("--header-timeout", "0.5", "--body-timeout", "0.5", "--body-total-timeout", "1", "--keep-alive", "0.5"),
    *("--max-body-bytes", "4096"),
)
ANSWER_S = 5.0
LARGEST_S = 0.2
LIMIT = 20_000
LIMIT_FLAGS = ("--max-body-bytes", str(LIMIT), "--max-header-bytes", "4096")
PIECES = (
    b"\r\n",
    b"\n",
    b"\0",
    b" ",
    b":",
    b"\xff",
    b"HTTP/1.1",
    b"Content-Length: 3\r\n",
    b"0\r\n\r\n",
    b"%",
    b"{",
    b'"',
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    1.5,
    "",
    "\0",
    [],
    [[]],
    [None],
    {},
    {"a": {}},
    [1, "a"],
    "x" * 3000,
    "\ud7ff\r\n",
)
FIELDS = (
    *(
        "n",
        "stream",
        "stream_options",
        "stop",
        "seed",
        "logprobs",
        "top_logprobs",
        "echo",
        "tools",
        "tool_choice",
        "user",
    ),
    *("response_format", "logit_bias", "guided_regex", "guided_json", "min_tokens", "deadline_s", "priority", "suffix"),
)


async def at_once(trial: Trial, attempt: Callable[[int], Awaitable[str]], clients: int = AT_ONCE) -> None:
    """Attempt after attempt by several clients, each with how it ended, until the trial is over. What is not as it must
    be is a finding.
    """
    numbers = iter(range(trial.count))

    async def client() -> None:
        for number in numbers:
            if trial.left_s <= 0 or len(trial.findings) > 20:
                return
            trial.ledger.sent += 1
            try:
                trial.ledger.ends[await attempt(number)] += 1
            except (WrongError, LostError) as error:
                trial.ledger.ends["wrong"] += 1
                trial.findings.append(f"{type(error).__name__}: {error}")

    await asyncio.gather(*(client() for _ in range(clients)))


async def fuzz(server: Server, trial: Trial) -> None:
    """34: mutated requests and fields of any kind; no 5xx, no silence, no long reply."""
    rng, statuses, slowest = random.Random(trial.seed), Counter[int](), 0.0

    async def attempt(number: int) -> str:
        nonlocal slowest
        data = mutated(rng) if number % 2 else any_fields(rng)
        start = time.monotonic()
        said = await all_that_comes(server.address, data, ends=number % 4 > 1)
        slowest = max(slowest, time.monotonic() - start)
        for part in said.split(b"HTTP/1.1 ")[1:]:
            if part[:3].isdigit():
                statuses[int(part[:3])] += 1
                check_part(data, part)
        return "answered" if said else "closed"

    await at_once(trial, attempt)
    await server.until(is_at_rest)
    trial.figures |= {"statuses": dict(sorted(statuses.items())), "slowest_s": round(slowest, 2)}
    trial.find(slowest > ANSWER_S * trial.patience, f"a connection stayed open for {slowest:.1f} s")


def mutated(rng: random.Random) -> bytes:
    """A request with a few things wrong."""
    seeds = [request_bytes(Address("", 0), "POST", path, body) for path, body in (
        (COMPLETIONS, GOOD_PROMPT), (CHAT, GOOD_CHAT | {"stream": True}), ("/tokenize", {"prompt": "hello"}),
    )]  # fmt: skip
    seeds.append(request_bytes(Address("", 0), "GET", "/v1/models/fake"))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 5)):
        place, kind = rng.randrange(len(data) + 1), rng.randrange(5)
        if kind == 0:
            data[place:place] = rng.choice(PIECES)
        elif kind == 1:
            del data[place : place + rng.randint(1, 20)]
        elif kind == 2:
            data[place : place + 1] = rng.randbytes(1)
        elif kind == 3:
            data[place:place] = data[place : place + rng.randint(1, 40)] * rng.randint(1, 3)
        else:
            data += rng.choice(seeds)
    return bytes(data)


def any_fields(rng: random.Random) -> bytes:
    """A request of sound form with values of any kind."""
    path, good = rng.choice([(COMPLETIONS, GOOD_PROMPT), (CHAT, GOOD_CHAT)])
    names = [*good, *FIELDS]
    body = good | {rng.choice(names): rng.choice(VALUES) for _ in range(rng.randint(1, 4))}
    return request_bytes(Address("", 0), "POST", path, body, {"Connection": "close"})


def check_part(request: bytes, part: bytes) -> None:
    """One reply to rubbish."""
    status = int(part[:3])
    require(status < 500, status, "to", request[:300])
    if 400 <= status < 500:
        body = part.partition(b"\r\n\r\n")[2]
        require(len(body) <= 4096, len(body), "bytes to", request[:300])
        headers = {line.partition(":")[0].lower(): "" for line in part.decode("latin-1").split("\r\n")}
        if body:
            check_error(status, headers, json.loads(body))


async def all_that_comes(address: Address, data: bytes, ends: bool) -> bytes:
    """Everything until the server closes; `ends`: the client says that it sends no more."""
    loop, said = asyncio.get_running_loop(), b""
    sock = await open_socket(address)
    try:
        await loop.sock_sendall(sock, data)
        if ends:
            sock.shutdown(socket.SHUT_WR)
        while piece := await asyncio.wait_for(loop.sock_recv(sock, 65536), 60):
            said += piece
    except ConnectionError:
        pass
    finally:
        sock.close()
    return said


async def bad_table(server: Server, trial: Trial) -> None:
    """35: the table of bad inputs, all of them again and again, in any order and several at a time."""
    rng, rows = random.Random(trial.seed), bad_inputs.rows()

    async def attempt(number: int) -> str:
        row = rows[number] if number < len(rows) else rng.choice(rows)
        await check_row(server.address, row)
        return str(row.status)

    await at_once(trial, attempt, clients=4)
    trial.figures["rows"] = len(rows)


async def limits(server: Server, trial: Trial) -> None:
    """36: bodies and heads around their limits, whole and in chunks; each side of a limit gets its own reply."""
    rng, before = random.Random(trial.seed), own(server).rss_bytes()

    async def attempt(number: int) -> str:
        size = LIMIT + rng.choice([-1, 0, 1, rng.randint(-LIMIT // 2, LIMIT // 2), 50 * LIMIT])
        body = json.dumps(GOOD_PROMPT).encode().ljust(size)
        kind = ("whole", "chunks", "gzip", "head")[number % 4]
        right = {"gzip": 415, "head": 431}.get(kind, 413 if size > LIMIT else 200)
        if kind == "head":
            lines = ["x-long: " + "a" * rng.choice([4096, 5000, 60_000])]
        else:
            lines = ["Content-Type: application/json"]
            lines += ["Content-Encoding: gzip"] if kind == "gzip" else []
        data = gzip.compress(body) if kind == "gzip" else in_chunks(rng, body) if kind == "chunks" else body
        lines.append("Transfer-Encoding: chunked" if kind == "chunks" else f"Content-Length: {len(data)}")
        await check_row(server.address, Row(f"{kind} of {size}", COMPLETIONS, data, right, ANY, headers=tuple(lines)))
        return f"{kind} {right}"

    await at_once(trial, attempt, clients=8)
    grown = own(server).rss_bytes() - before
    trial.figures["rss_growth_mib"] = round(grown / 2**20, 1)
    trial.find(grown > 32 * 2**20, f"memory grew by {grown / 2**20:.0f} MiB")


def in_chunks(rng: random.Random, body: bytes) -> bytes:
    """Chunks of any size, and the last one."""
    parts, at = [], 0
    while at < len(body):
        size = rng.choice([rng.randint(1, 2000), LIMIT, 100_000])
        piece = body[at : at + size]
        parts.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        at += size
    return b"".join([*parts, b"0\r\n\r\n"])


def large() -> list[Row]:
    """Requests that are much to read, to check or to compile."""
    schema: object = {"type": "string"}
    for _ in range(100):
        schema = {"type": "object", "properties": {"a": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    text = [{"role": "user", "content": "word " * 2**21}]
    return [
        Row("10 MB of text", COMPLETIONS, GOOD_PROMPT | {"prompt": "word " * 2**21}, 400, ANY),
        Row("10 MB in a message", CHAT, GOOD_CHAT | {"messages": text}, 400, ANY),
        Row("2 million tokens", COMPLETIONS, GOOD_PROMPT | {"prompt": [7] * 2**21}, 400, ANY),
        Row("4,096 messages", CHAT, GOOD_CHAT | {"messages": [{"role": "user", "content": "a"}] * 4096}, 400, ANY),
        Row("a schema 100 deep", CHAT, GOOD_CHAT | {"response_format": form}, 400, ANY),
        Row("a regex that would explode", CHAT, GOOD_CHAT | {"guided_regex": "(a+)+$"}, 400, ANY),
        Row("300,000 biases", CHAT, GOOD_CHAT | {"logit_bias": {str(n): 1 for n in range(300_000)}}, 400, ANY),
    ]


async def large_ones(server: Server, trial: Trial) -> None:
    """37: large requests one after another; a control request takes 0.2 s at most, the loop is never held for long."""
    rows = [(row.data, row) for row in large()]
    worst: dict[str, float] = {}
    times: list[float] = []
    turns = itertools.count()
    while (turn := next(turns)) < max(1, trial.count // len(rows)) and (trial.left_s > 0 or not turn):
        for data, row in rows:
            async with pulse(server.address) as during:
                await check_row(server.address, Row(row.name, "", data, row.status, ANY))
            times += during
            worst[row.name] = max(worst.get(row.name, 0.0), *during)
            trial.ledger.sent += 1
            trial.ledger.ends["refused"] += 1
    p99 = percentile(times, 99)
    trial.figures |= {"control_ms_p50_p99_max": [round(1e3 * percentile(times, part), 1) for part in (50, 99, 100)]}
    trial.figures["control_ms_max"] = {name: round(1e3 * took, 1) for name, took in worst.items()}
    trial.find(p99 > LARGEST_S * trial.patience, f"control requests took {p99:.3f} s")
