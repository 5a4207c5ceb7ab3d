"""Trials of load: more than there is room for, one caller against another, long prompts, what can never fit.

What a trial measures stands in its figures; what is beyond the promise, in its findings.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tools.soak.asks import Ask, make_ask
from tools.soak.crowd import Ledger, run_crowd
from tools.soak.pulse import percentile
from tools.soak.replies import check_error, require
from tools.soak.server import Server
from tools.soak.trials import Trial, is_at_rest, mixed
from tools.soak.wire import Address, Connection, request_bytes

TARGET_TTFT_S = 2.0
SURGE = "fake:length=8,step_ms=40"
SURGE_FLAGS = ("--max-num-seqs", "8", "--target-ttft", str(TARGET_TTFT_S))
CAPACITY = 8 / (9 * 0.04)
"""Requests a second of that server, if the machine has nothing else to do."""
REFUSED_WITHIN_S = 0.05
KEYS = ("key-of-the-crowd", "key-of-the-other")
SHARED = "fake:length=20,step_ms=5"
SHARED_FLAGS = ("--max-num-seqs", "4", "--api-key", KEYS[0], "--api-key", KEYS[1])
LONG = "fake:length=100000,step_ms=10,token_us=20,max_model_len=8192"
LONG_FLAGS = ("--max-num-batched-tokens", "256")
TIGHT_FLAGS = ("--kv-cache-memory", "12KiB", "--max-num-seqs", "16")
"""Hardly more than the largest request of the crowd takes."""
CLOSE_FLAGS = ("--kv-cache-memory", "64KiB")


@dataclass
class Seen:
    """What became of the requests of one load."""

    finished: list[float] = field(default_factory=list)
    """When."""
    first_token_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)


async def surge_one(connection: Connection, number: int, seen: Seen) -> None:
    """One streamed request to its end, timed from before it is sent."""
    asked = make_ask(f"surge {number}", stream=True, max_tokens=9)
    start = time.monotonic()
    await connection.send(request_bytes(connection.address, "POST", asked.path, asked.body))
    head = await connection.head()
    if head.status != 200:
        check_error(head.status, head.headers, json.loads(await connection.body(head)))
        require(head.status == 503, "refused with", head.status)
        seen.refused_s.append(time.monotonic() - start)
        return
    first = None
    async for _ in connection.events(head):
        first = first or time.monotonic() - start
    seen.first_token_s.append(first or 0.0)
    seen.finished.append(time.monotonic())


async def offer(server: Server, rate: float, seconds: float, numbers: Iterator[int]) -> tuple[Seen, float]:
    """So many requests a second, whatever becomes of them; what became of them, and goodput a second."""
    seen, free, tasks = Seen(), list[Connection](), list[asyncio.Task[None]]()

    async def one(number: int) -> None:
        connection = free.pop() if free else Connection(server.address)
        await surge_one(connection, number, seen)
        free.append(connection)

    start = time.monotonic()
    for sent in itertools.count():
        now = time.monotonic() - start
        if now >= seconds:
            break
        if sent / rate > now:
            await asyncio.sleep(sent / rate - now)
        tasks.append(asyncio.ensure_future(one(next(numbers))))
    end = time.monotonic()
    await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    settled = start + seconds / 4
    return seen, sum(settled <= at <= end for at in seen.finished) / (end - settled)


async def surge(server: Server, trial: Trial) -> None:
    """10: twice, five and ten times what the server can do; goodput stays, and who is refused is told at once."""
    await surge_within(server, trial, TARGET_TTFT_S, min(trial.seconds / 4, trial.count / CAPACITY))


async def surge_within(server: Server, trial: Trial, target_s: float, part_s: float) -> None:
    """The same for a server with this limit of the wait for a first token, and so many seconds at each load."""
    numbers = itertools.count(trial.seed * 10**6)
    peak = (await offer(server, 1.2 * CAPACITY, part_s, numbers))[1]
    trial.figures["peak_per_s"] = round(peak, 2)
    for times in (2, 5, 10):
        seen, goodput = await offer(server, times * peak, part_s, numbers)
        require(bool(seen.refused_s), "at", times, "times nobody was refused")
        trial.ledger.sent += len(seen.refused_s) + len(seen.finished)
        trial.ledger.ends.update({"refused": len(seen.refused_s), "finished": len(seen.finished)})
        late = sum(took > REFUSED_WITHIN_S for took in seen.refused_s) / len(seen.refused_s)
        trial.figures[f"at_{times}"] = {
            "goodput_part": round(goodput / peak, 3),
            "refused_ms_p50_p99": [round(1e3 * percentile(seen.refused_s, p), 1) for p in (50, 99)],
            "refused_late_part": round(late, 3),
            "ttft_s_p99": round(percentile(seen.first_token_s, 99), 2),
        }
        judge(trial, f"at {times} times", goodput / peak, seen, target_s)
        await server.until(is_at_rest)


def judge(trial: Trial, when: str, goodput: float, seen: Seen, target_s: float) -> None:
    """One load against the promise; `goodput` as a part of the most there was."""
    told, usual = percentile(seen.refused_s, 99), percentile(seen.refused_s, 50)
    first = percentile(seen.first_token_s, 99)
    trial.find(goodput < 0.9 / trial.patience**0.5, f"{when} goodput is {goodput:.0%} of its peak")
    trial.find(usual > REFUSED_WITHIN_S * trial.patience, f"{when} most refusals took more than {usual:.3f} s")
    trial.find(told > REFUSED_WITHIN_S, f"{when} a refusal in a hundred took {told:.3f} s")
    trial.find(first > target_s * trial.patience + 0.5, f"{when} a first token took {first:.2f} s")


async def fairness(server: Server, trial: Trial) -> None:
    """15: one key has a thousand requests in the queue; another's single one waits for a slot and no more."""
    many, other = (replace(server.address, key=key) for key in KEYS)
    ended: list[float] = []

    async def flood(number: int) -> None:
        connection = Connection(many)
        asked = make_ask(f"flood {number}", max_tokens=20, ignore_eos=True)
        try:
            await connection.send(request_bytes(many, "POST", asked.path, asked.body))
            await connection.body(await connection.head())
            ended.append(time.monotonic())
        finally:
            connection.close()

    alone = percentile([await first_token_s(other, n) for n in range(5)], 50)
    count = min(1000, trial.count)
    flooding = [asyncio.ensure_future(flood(number)) for number in range(count)]
    await server.until(lambda stats: stats["server"]["requests_queued"] > count / 2)
    waits, before = list[float](), list[int]()
    while len(ended) < count / 2 and len(waits) < 20:
        start = len(ended)
        waits.append(await first_token_s(other, 100 + len(waits)))
        before.append(len(ended) - start)
    for task in flooding:
        task.cancel()
    await asyncio.gather(*flooding, return_exceptions=True)
    trial.figures |= {
        "queued": count,
        "first_token_alone_s": round(alone, 3),
        "first_token_s_max": round(max(waits), 3),
    }
    trial.figures |= {"singles": len(waits), "others_before_it_max": max(before)}
    slot_s = 20 * 0.005
    limit = (alone + slot_s * 1.5) * trial.patience
    trial.find(max(waits) > limit, f"a single request waited {max(waits):.3f} s for its first token")


async def first_token_s(address: Address, number: int) -> float:
    """Seconds until a small request of this caller begins to be answered; it is read to its end."""
    connection = Connection(address)
    asked = make_ask(f"single {number}", stream=True, max_tokens=2, ignore_eos=True)
    start = time.monotonic()
    await connection.send(request_bytes(address, "POST", asked.path, asked.body))
    head = await connection.head()
    require(head.status == 200, "a single request got", head.status)
    times = [time.monotonic() - start async for _ in connection.events(head)]
    connection.close()
    return times[0]


async def long_prompts(server: Server, trial: Trial) -> None:
    """15: prompts of the full context do not more than double the time between others' tokens."""
    gaps: list[float] = []
    connection = Connection(server.address)
    asked = make_ask("steady", stream=True, max_tokens=8000, ignore_eos=True)
    await connection.send(request_bytes(server.address, "POST", asked.path, asked.body))
    head, done = await connection.head(), asyncio.Event()

    async def read() -> None:
        last = None
        async for _ in connection.events(head):
            now = time.monotonic()
            gaps.append(now - last if last else 0.0)
            last = now
            if done.is_set():
                return

    reading = asyncio.ensure_future(read())
    part = min(trial.seconds / 2, trial.count / 100)
    await asyncio.sleep(part)
    quiet = percentile(gaps[2:], 99)
    gaps.clear()
    start, sent = time.monotonic(), 0
    while time.monotonic() - start < part:
        await long_one(server, sent, trial.seed)
        sent += 1
    loud = percentile(gaps[1:], 99)
    done.set()
    await reading
    connection.close()
    trial.figures |= {"long_prompts": sent, "itl_ms_p99_quiet_loud": [round(1e3 * each, 1) for each in (quiet, loud)]}
    trial.find(loud > 2 * quiet * trial.patience, f"time between tokens grew from {quiet:.4f} to {loud:.4f} s")


async def long_one(server: Server, number: int, seed: int) -> None:
    """A prompt that nearly fills the context, and one token of answer."""
    connection = Connection(server.address)
    text = f"{seed}.{number} " + "long " * 1600
    asked = make_ask(text, max_tokens=1)
    await connection.send(request_bytes(server.address, "POST", asked.path, asked.body))
    head = await connection.head()
    await connection.body(head)
    require(head.status == 200, "a long prompt got", head.status)
    connection.close()


async def unfit(server: Server, trial: Trial) -> None:
    """17: what can never fit, among others; it is refused with 400 and the numbers, at once, and holds up nobody."""
    rng, took = random.Random(trial.seed), list[float]()
    longest = (await server.stats())["model"]["max_model_len"]

    async def too_long() -> None:
        connection = Connection(server.address)
        for number in range(min(trial.count, 1000)):
            if trial.left_s <= 0:
                break
            text = f"{number} " + "x" * rng.choice([longest, longest + 1, 2 * longest, 20 * longest])
            asked = make_ask(text, chat=number % 2 == 0, stream=number % 3 == 0)
            start = time.monotonic()
            await connection.send(request_bytes(server.address, "POST", asked.path, asked.body))
            head = await connection.head()
            body = json.loads(await connection.body(head))
            took.append(time.monotonic() - start)
            code = check_error(head.status, head.headers, body)
            require((head.status, code) == (400, "context_length_exceeded"), "too long:", head.status, code)
            require(str(longest) in body["error"]["message"], "without the numbers:", body)
        stop.set()
        connection.close()

    stop = asyncio.Event()

    def asks() -> Iterator[Ask]:
        return itertools.takewhile(lambda _: not stop.is_set(), replace(trial, count=10**9).asks(faults=False))

    others = Ledger()
    await asyncio.gather(too_long(), run_crowd(server.address, asks(), trial.clients, others))
    trial.findings += others.problems()
    trial.ledger.sent, trial.ledger.ends = others.sent + len(took), others.ends + Counter({"unfit": len(took)})
    trial.figures |= {"unfit": len(took), "refused_ms_p99": round(1e3 * percentile(took, 99), 1)}
    trial.find(percentile(took, 99) > 1.0 * trial.patience, "a refusal took longer than a second")


async def tight(server: Server, trial: Trial) -> None:
    """18: any requests in a cache that hardly holds one of them; preemption after preemption changes no byte."""
    await mixed(server, trial)
    each = trial.figures["preemptions"] / max(1, trial.ledger.sent)
    trial.figures["preemptions_each"] = round(each, 2)
    trial.find(each < 0.3, f"only {each:.2f} preemptions a request: the cache is not tight")
