"""What every driver shares: JSON lines on standard input and output, and the clock of a run.

A driver is a program that runs one engine in that engine's own environment. It answers one line of JSON to each line
of JSON: `load` once, `run` any number of times, `quit` or the end of input to leave. Standard output belongs to the
protocol: whatever the engine's libraries print goes to standard error. The fields are described in docs/peers.md. Only
the standard library is needed here, and nothing of kvik.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

Message = dict[str, Any]
Given = tuple[int, list[int], bool]
"""A request's index, its new token ids, and whether it has ended."""


class Driver(Protocol):
    """One engine."""

    def load(self, asked: Message) -> Message:
        """Load `asked["model"]`; returns `versions` and `settings`."""

    def run(self, prompts: list[list[int]], output_lens: list[int], concurrency: int) -> Run:
        """Complete all prompts greedily, ignoring end tokens, at most `concurrency` at a time."""


class Run:
    """The record of one run: what each request got, and when.

    `events` are cumulative, one after every step that gave a token: seconds since the start, output tokens, requests
    that have their first token, requests that have ended.
    """

    def __init__(self, output_lens: Sequence[int]) -> None:
        self._asked = list(output_lens)
        self._counts = [0] * len(self._asked)
        self._first: list[int | None] = [None] * len(self._asked)
        self._totals = [0, 0, 0]
        self.events: list[list[float]] = []
        self.seconds = 0.0
        self._start = time.perf_counter()

    def give(self, index: int, token_ids: Sequence[int], ended: bool) -> None:
        """Note new tokens of one request. Tokens beyond what was asked for are not counted."""
        new = min(len(token_ids), self._asked[index] - self._counts[index])
        if new > 0 and self._first[index] is None:
            self._first[index] = int(token_ids[0])
            self._totals[1] += 1
        self._counts[index] += new
        self._totals[0] += new
        self._totals[2] += ended

    def mark(self) -> None:
        """End of a step: an event, if it gave a token."""
        tokens, ended = (self.events[-1][1], self.events[-1][3]) if self.events else (0, 0)
        if tokens != self._totals[0] or ended != self._totals[2]:
            self.events.append([time.perf_counter() - self._start, *self._totals])

    def finish(self) -> Run:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self._start
        return self

    def as_message(self) -> Message:
        """For the answer."""
        return {
            "seconds": self.seconds,
            "events": self.events,
            "output_tokens": self._counts,
            "first_token_ids": self._first,
        }


def closed_loop(
    prompts: list[list[int]],
    output_lens: list[int],
    concurrency: int,
    add: Callable[[int, list[int], int], object],
    step: Callable[[], Iterable[Given]],
) -> Run:
    """Keep `concurrency` requests in flight until all have ended: a new one is added when one ends."""
    run, waiting, flying = Run(output_lens), list(range(len(prompts))), 0
    while waiting or flying:
        while waiting and flying < concurrency:
            index = waiting.pop(0)
            add(index, prompts[index], output_lens[index])
            flying += 1
        for index, token_ids, ended in step():
            run.give(index, token_ids, ended)
            flying -= ended
        run.mark()
    return run.finish()


def serve(driver: Driver) -> None:
    """Answer messages until `quit` or the end of input."""
    answers = _private_stdout()
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["op"] == "quit":
            break
        try:
            reply = _answer(driver, asked)
        except Exception as error:
            traceback.print_exc()
            reply = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
    # Engines with threads of their own have been seen to hang in their destructors; the answers are all out.
    sys.stderr.flush()
    os._exit(0)


def _answer(driver: Driver, asked: Message) -> Message:
    if asked["op"] == "load":
        start = time.perf_counter()
        told = driver.load(asked)
        return {"ok": True, **told, "load_seconds": time.perf_counter() - start, **_memory()}
    if asked["op"] == "run":
        _reset_peak()
        run = driver.run(asked["prompts"], asked["output_lens"], asked["concurrency"])
        return {"ok": True, **run.as_message(), **_memory()}
    raise ValueError(f"op is {asked['op']!r}; expected load, run or quit")


def _private_stdout() -> TextIO:
    """The real standard output; from now on file descriptor 1 is standard error, for C and C++ too."""
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return kept


def _memory() -> Message:
    """Resident bytes now and at most since the last run began; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {"resident_bytes": None, "peak_bytes": None}
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest}
    return {"resident_bytes": kib["VmRSS"] * 1024, "peak_bytes": kib["VmHWM"] * 1024}


def _reset_peak() -> None:
    """Let the peak be that of the next run. Linux allows it for one's own process."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        print("the peak of resident memory cannot be reset: it is that of the process", file=sys.stderr)


def restart_with(environment: dict[str, str], marker: str) -> None:
    """Start this program again with variables that libraries read when they are loaded; returns when that is done."""
    if os.environ.get(marker) != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **environment, marker: "1"})


def usable_cores(threads: int | None) -> list[int]:
    """The cores this process may use, at most `threads` of them."""
    return sorted(os.sched_getaffinity(0))[:threads]
