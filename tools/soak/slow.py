"""Trials of clients that are slow, stop, leave or have no time; and of a server that may open too few files.

Sockets here are plain ones, so that what a client does not do is left to nobody else. Knows nothing of load.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tools.soak.asks import CHAT, make_ask
from tools.soak.pulse import percentile, pulse
from tools.soak.replies import require
from tools.soak.server import PATIENCE_S, Server
from tools.soak.trials import Trial, own
from tools.soak.wire import Address, Connection, request_bytes

HEADER_S, BODY_S, BODY_TOTAL_S, WRITE_S = 10.0, 30.0, 60.0, 30.0
"""The limits of a server that was told nothing else."""
ENDLESS = "fake:length=100000,max_model_len=200000"
STEPPED = "fake:length=300,step_ms=5"
STEP_S = 0.005
FEW_FILES = 256
CUTS = ("head", "body", "sent", "prefill", *(f"event {k}" for k in (1, 2, 3, 5, 10, 50)), "whole reply")


async def open_socket(address: Address, receive_buffer: int | None = None) -> socket.socket:
    """A connection; with a small buffer if its client is not going to read."""
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(sock, (address.host, address.port))
    return sock


async def drip(address: Address, begin: bytes, more: bytes, every_s: float) -> tuple[float, bytes]:
    """Send the beginning of a request and then a little now and then; seconds until the server has had enough, and
    what it said.
    """
    loop, said = asyncio.get_running_loop(), b""
    sock = await open_socket(address)
    start = time.monotonic()
    try:
        await loop.sock_sendall(sock, begin)
        while True:
            try:
                data = await asyncio.wait_for(loop.sock_recv(sock, 4096), every_s)
                if not data:
                    break
                said += data
            except asyncio.TimeoutError:
                if more:
                    await loop.sock_sendall(sock, more)
    except OSError:
        pass
    finally:
        sock.close()
    return time.monotonic() - start, said


async def slow_clients(server: Server, trial: Trial) -> None:
    """12: two thousand idle connections, five hundred slow heads, five hundred slow bodies; nobody else notices."""
    each = min(500, trial.count)
    async with pulse(server.address) as quiet:
        await asyncio.sleep(min(5.0, trial.seconds / 4))
    baseline = percentile(quiet, 99)
    asked = make_ask("slow")
    whole = request_bytes(server.address, "POST", asked.path, asked.body)
    head, _, body = whole.partition(b"\r\n\r\n")
    async with pulse(server.address) as times:
        idle = [await open_socket(server.address) for _ in range(4 * each)]
        heads = [drip(server.address, head[:20], b"a", 1.0) for _ in range(each)]
        # Half of the bodies stop, and half go on so slowly that only the limit of the whole time ends them.
        begin = head.replace(b"Content-Length: %d" % len(body), b"Content-Length: 5000") + b"\r\n\r\n" + body[:9]
        bodies = [drip(server.address, begin, b" " * (n % 2), 1.0) for n in range(each)]
        cut = await asyncio.gather(*heads, *bodies)
    for sock in idle:
        sock.close()
    loud = percentile(times, 99)
    parts = ((HEADER_S, cut[:each]), (BODY_S, cut[each::2]), (BODY_TOTAL_S, cut[each + 1 :: 2]))
    for limit, part in parts:
        longest = max(seconds for seconds, _ in part)
        trial.find(longest > limit + 5 * trial.patience, f"a client with {limit:.0f} s was cut after {longest:.1f} s")
        told = sum(b" 408 " in said for _, said in part)
        trial.find(told != len(part), f"{told} of {len(part)} slow clients were told 408")
    trial.figures |= {"connections": 6 * each, "cut_s_max": round(max(seconds for seconds, _ in cut), 1)}
    trial.figures["control_ms_p99_quiet_loud"] = [round(1e3 * p, 2) for p in (baseline, loud)]
    trial.find(
        loud > max(2 * baseline, 0.02) * trial.patience, f"control requests took {loud:.4f} s, {baseline:.4f} before"
    )


async def stalled(server: Server, trial: Trial) -> None:
    """13: clients that stop reading in the middle of a stream; each is cut, its blocks freed, little kept for it."""
    count, loop = min(200, trial.count), asyncio.get_running_loop()
    asked = make_ask(
        "stalled", chat=True, stream=True, max_tokens=10**5, ignore_eos=True, logprobs=True, top_logprobs=20
    )
    data = request_bytes(server.address, "POST", CHAT, asked.body)
    before = own(server).rss_bytes()
    socks = [await open_socket(server.address, 4096) for _ in range(count)]
    try:
        for sock in socks:
            await loop.sock_sendall(sock, data)
        await server.until(lambda stats: stats["engine"]["requests_running"] == count)
        start, most = time.monotonic(), 0
        while time.monotonic() < start + WRITE_S + PATIENCE_S * trial.patience:
            most = max(most, own(server).rss_bytes() - before)
            if not (await server.stats())["engine"]["requests_running"]:
                break
            await asyncio.sleep(0.2)
        took = time.monotonic() - start
        engine = (await server.stats())["engine"]
    finally:
        for sock in socks:
            sock.close()
    trial.figures |= {"clients": count, "all_cut_s": round(took, 1), "rss_growth_kib_each": round(most / count / 1024)}
    trial.find(bool(engine["blocks_used"]), f"{engine['blocks_used']} blocks are held for clients that were cut")
    trial.find(engine["requests_ended"]["abort"] < count, f"only {engine['requests_ended']} of {count} were cut")
    trial.find(most > count * 256 * 1024 * 2, f"memory grew by {most / count / 1024:.0f} KiB for each client")


async def files(server: Server, trial: Trial) -> None:
    """14: a thousand connections to a server that may open 256 files; no crash, no busy loop, well again at once."""
    mine, count = own(server), min(1000, trial.count)
    while trial.left_s > 0:
        socks = []
        for _ in range(count):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex((server.address.host, server.address.port))
            socks.append(sock)
        await asyncio.sleep(0.5)
        used, start = mine.cpu_s(), time.monotonic()
        await asyncio.sleep(2.0)
        busy = (mine.cpu_s() - used) / (time.monotonic() - start)
        for sock in socks:
            sock.close()
        start = time.monotonic()
        await server.until_ready()
        back = time.monotonic() - start
        trial.ledger.sent += count
        trial.ledger.ends.update({"left": count})
        worst = trial.figures.get("cpu_part_max", 0.0), trial.figures.get("back_s_max", 0.0)
        trial.figures |= {"cpu_part_max": round(max(worst[0], busy), 3), "back_s_max": round(max(worst[1], back), 3)}
        trial.find(busy > 0.2 * trial.patience, f"without files it took {busy:.0%} of a core")
        trial.find(back > 2.0 * trial.patience, f"it answered {back:.1f} s after the clients had gone")
        if trial.ledger.sent >= trial.count:
            break


async def leave(server: Server, trial: Trial) -> None:
    """19: clients that leave at any point, by FIN and by RST; each is gone from the engine a step later."""
    rng, took = random.Random(trial.seed), dict[str, list[float]]()
    stop = asyncio.Event()
    crowd = [asyncio.ensure_future(hold_seat(server.address, n, stop)) for n in range(4)]
    try:
        for number in range(trial.count):
            if trial.left_s <= 0:
                break
            cut = CUTS[number % len(CUTS)]
            trial.ledger.sent += 1
            took.setdefault(cut, []).append(await come_to(server, cut, number, rng))
            trial.ledger.ends["left"] += 1
    finally:
        stop.set()
        await asyncio.gather(*crowd)
    times = [each for part in took.values() for each in part]
    trial.figures["gone_ms_p50_p99_max"] = [round(1e3 * percentile(times, part), 1) for part in (50, 99, 100)]
    trial.figures["gone_ms_p99"] = {cut: round(1e3 * percentile(part, 99), 1) for cut, part in took.items()}
    late = percentile(times, 99)
    trial.find(late > (STEP_S + 0.1) * trial.patience, f"a client that left was gone after {late:.3f} s")


async def hold_seat(address: Address, number: int, stop: asyncio.Event) -> None:
    """Streams one after another, so that there is something to leave."""
    while not stop.is_set():
        connection = Connection(address)
        asked = make_ask(f"seat {number}", stream=True, max_tokens=300, ignore_eos=True)
        try:
            await connection.send(request_bytes(address, "POST", asked.path, asked.body))
            async for _ in connection.events(await connection.head()):
                pass
        finally:
            connection.close()


async def come_to(server: Server, cut: str, number: int, rng: random.Random) -> float:
    """Come as far as the cut, leave; seconds until only the others are there."""
    long = "word " * 700 if cut == "prefill" else ""
    stream = cut != "whole reply"
    asked = make_ask(f"{number} {long}", stream=stream, max_tokens=200, ignore_eos=True, n=1)
    data = request_bytes(server.address, "POST", asked.path, asked.body)
    connection = Connection(server.address)
    try:
        await connection.send(data[: {"head": 30, "body": len(data) - 5}.get(cut, len(data))])
        if cut.startswith("event"):
            head = await connection.head()
            left = int(cut.split()[1])
            async for _ in connection.events(head):
                left -= 1
                if not left:
                    break
        elif cut == "whole reply":
            await asyncio.sleep(rng.random() * 0.2)
    finally:
        connection.close(reset=rng.random() < 0.5)
    start = time.monotonic()
    await server.until(lambda stats: stats["server"]["requests_open"] <= 5 and holds_no_more(stats, 4))
    return time.monotonic() - start


def holds_no_more(stats: dict[str, dict[str, int]], seats: int) -> bool:
    """Whether the engine has no more requests than there are others."""
    return stats["engine"]["requests_running"] + stats["engine"]["requests_waiting"] <= seats


async def deadlines(server: Server, trial: Trial) -> None:
    """21: random deadlines; each ends its request in time, as an error before the first token and as its end after."""
    rng, over, ends = random.Random(trial.seed), list[float](), Counter[str]()
    numbers = iter(range(trial.count))

    async def client() -> None:
        connection = Connection(server.address)
        for number in numbers:
            if trial.left_s <= 0:
                break
            limit = rng.choice([0.001, 0.02, 0.1, 0.5, 1.0])
            start = time.monotonic()
            ends[await run_out(connection, number, limit, stream=number % 2 == 0)] += 1
            over.append(time.monotonic() - start - limit)
        connection.close()

    await asyncio.gather(*(client() for _ in range(8)))
    trial.ledger.sent, trial.ledger.ends = sum(ends.values()), ends
    trial.figures["over_ms_p50_p99_max"] = [round(1e3 * percentile(over, part), 1) for part in (50, 99, 100)]
    late = percentile(over, 99)
    trial.find(late > (STEP_S + 0.1) * trial.patience, f"a request ended {late:.3f} s after its deadline")
    trial.find(set(ends) - {"504", "length deadline"} != set(), f"ends: {dict(ends)}")


async def run_out(connection: Connection, number: int, limit: float, stream: bool) -> str:
    """A request longer than its deadline; how it ended."""
    asked = make_ask(f"late {number}", stream=stream, max_tokens=1000, ignore_eos=True)
    headers = {"x-request-timeout": f"{limit}"}
    await connection.send(request_bytes(connection.address, "POST", asked.path, asked.body, headers))
    head = await connection.head()
    if head.status != 200:
        await connection.body(head)
        return str(head.status)
    if not head.is_stream:
        return how_it_ended([json.loads(await connection.body(head))])
    return how_it_ended([json.loads(data) async for data in connection.events(head) if data != "[DONE]"])


def how_it_ended(parts: Sequence[dict[str, Any]]) -> str:
    """The finish reason of the last part, and what stopped it."""
    last = parts[-1]
    require("choices" in last, "instead of an end:", last)
    (choice,) = last["choices"]
    return f"{choice['finish_reason']} {choice.get('stop_reason')}"
