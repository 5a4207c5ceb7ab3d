"""A crowd of clients, and the ledger in which each of their requests stands exactly once.

A client takes the next ask, behaves as it says, and writes down how it ended. Whatever came back is checked. Knows
nothing of the server but its address.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tools.soak.asks import Ask
from tools.soak.replies import StreamCheck, WrongError, check_error, check_whole
from tools.soak.wire import Address, Connection, LostError, request_bytes

FINISHED, FAILED, REFUSED, LATE, LEFT = "finished", "failed", "refused", "late", "left"
UNASKED = "failed unasked"
"""The request asked for no fault; the engine died meanwhile, or something is wrong."""
LOST, WRONG = "lost", "wrong"
KEPT = 20


@dataclass
class Ledger:
    """How requests ended."""

    sent: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """The first of those that were lost or wrong."""

    def write(self, ask: Ask, end: str, said: str = "") -> None:
        """One that ended."""
        self.ends[end] += 1
        if end in (LOST, WRONG) and len(self.faults) < KEPT:
            self.faults.append(f"{end}: {said}; {ask.path} {json.dumps(ask.body)[:400]}")

    def problems(self, may_fail: bool = False) -> list[str]:
        """What is not as promised. With `may_fail` the engine was killed meanwhile, and requests were told so."""
        said = list(self.faults)
        if self.sent != sum(self.ends.values()):
            said.append(f"{self.sent} requests and {sum(self.ends.values())} ends")
        if not may_fail and self.ends[UNASKED] + self.ends[REFUSED]:
            said.append(f"{dict(self.ends)}: failed or refused though nothing was wrong")
        return said


async def one(connection: Connection, ask: Ask) -> str:
    """One request to its end. Raises LostError, WrongError."""
    headers = {} if ask.timeout_s is None else {"x-request-timeout": f"{ask.timeout_s}"}
    await connection.send(request_bytes(connection.address, "POST", ask.path, ask.body, headers))
    if ask.leaves_after is None:
        return await read(connection, ask)
    try:
        if ask.streams:
            return await read(connection, ask)
        return await asyncio.wait_for(read(connection, ask), ask.leaves_after / 1e3)
    except asyncio.TimeoutError:
        return LEFT
    finally:
        connection.close(ask.resets)


async def read(connection: Connection, ask: Ask) -> str:
    """What comes back, checked; how it ended."""
    head = await connection.head()
    if head.status != 200:
        return refusal(
            ask, head.status, check_error(head.status, head.headers, json.loads(await connection.body(head)))
        )
    if not head.is_stream:
        check_whole(ask, json.loads(await connection.body(head)))
        return FINISHED
    check, left = StreamCheck(ask), ask.leaves_after
    if left == 0:
        return LEFT
    async for data in connection.events(head):
        check.push(data)
        left = None if left is None else left - 1
        if left == 0:
            check.check_beginning()
            return LEFT
    if check.error is not None:
        check.check_beginning()
        return refusal(ask, 200, check.error)
    check.check_end()
    return FINISHED


def refusal(ask: Ask, status: int, code: str) -> str:
    """How a request ended that was told an error."""
    if ask.timeout_s is not None and code == "deadline_exceeded":
        return LATE
    if status in (429, 503) and code != "aborted":
        return REFUSED
    if ask.fault is not None and (status == 200 or (code == "numerical_error") == (ask.fault == "nan")):
        return FAILED
    if status in (200, 500):
        return UNASKED
    raise WrongError(f"status {status}, code {code}")


async def run_crowd(
    address: Address, asks: Iterator[Ask], size: int, ledger: Ledger, pause: Callable[[], float] = lambda: 0.0
) -> None:
    """So many clients, until there are no more asks. `pause`: seconds that a client waits after a refusal."""

    async def client() -> None:
        connection = Connection(address)
        for ask in asks:
            ledger.sent += 1
            try:
                end = await one(connection, ask)
            except LostError as error:
                ledger.write(ask, LOST, str(error))
            except (WrongError, KeyError, ValueError, TypeError) as error:
                ledger.write(ask, WRONG, f"{type(error).__name__} {error}")
                connection.close()
            else:
                ledger.write(ask, end)
                if end == REFUSED:
                    await asyncio.sleep(pause())
        connection.close()

    await asyncio.gather(*(client() for _ in range(size)))
