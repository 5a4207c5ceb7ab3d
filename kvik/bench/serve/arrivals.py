"""When requests come and how long they are: drawn from a seed, or read from a trace of what came to a real service.

A trace is the CSV of Azure's public LLM inference data set: TIMESTAMP, ContextTokens, GeneratedTokens. This file knows
nothing of servers.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kvik.bench.workload import Range
from kvik.errors import ConfigError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True)
class Arrival:
    """A request to come: seconds after the start (None: when a client is free), tokens in and out."""

    offset_s: float | None
    input_len: int
    output_len: int


def draw_lengths(count: int, input_len: Range, output_len: Range, seed: int) -> list[tuple[int, int]]:
    """Tokens in and out of each request, evenly from both ranges."""
    draw = random.Random(seed).randint
    return [(draw(*input_len), draw(*output_len)) for _ in range(count)]


def closed(lengths: Sequence[tuple[int, int]]) -> list[Arrival]:
    """Requests that are sent as soon as a client is free."""
    return [Arrival(None, *each) for each in lengths]


def poisson(lengths: Sequence[tuple[int, int]], rate: float, seed: int) -> list[Arrival]:
    """Requests at so many a second on average, the pauses between them exponential; the first one at once."""
    draw, now, arrivals = random.Random(f"{seed}/arrivals"), 0.0, []
    for each in lengths:
        arrivals.append(Arrival(now, *each))
        now += draw.expovariate(rate)
    return arrivals


@dataclass(frozen=True)
class Trace:
    """A trace as it is replayed."""

    arrivals: list[Arrival]
    clipped: int
    """Requests that were cut to the longest lengths allowed."""


def read_trace(
    path: Path, *, count: int, speed_up: float, max_input: int | None = None, max_output: int | None = None
) -> Trace:
    """The first `count` requests of a trace, `speed_up` times as fast as they came. Raises ConfigError."""
    arrivals: list[Arrival] = []
    clipped, first = 0, None
    for line, when, tokens_in, tokens_out in _rows(path):
        if len(arrivals) == count:
            break
        first = when if first is None else first
        offset = (when - first).total_seconds() / speed_up
        if offset < (arrivals[-1].offset_s or 0.0 if arrivals else 0.0):
            raise ConfigError(f"{path}, line {line}: it comes before the request of the line above")
        cut_in, cut_out = min(tokens_in, max_input or tokens_in), min(tokens_out, max_output or tokens_out)
        clipped += (cut_in, cut_out) != (tokens_in, tokens_out)
        arrivals.append(Arrival(offset, cut_in, cut_out))
    if not arrivals:
        raise ConfigError(f"{path} holds no request")
    return Trace(arrivals, clipped)


def _rows(path: Path) -> Iterator[tuple[int, datetime, int, int]]:
    """Line, time, tokens in and out of each request."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if any(name not in (reader.fieldnames or ()) for name in COLUMNS):
                raise ConfigError(f"{path} is no trace; expected a CSV with the columns {', '.join(COLUMNS)}")
            for row in reader:
                yield reader.line_num, *_read(path, reader.line_num, row)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: byte {error.start} is {error.reason}") from error


def _read(path: Path, line: int, row: dict[str, str]) -> tuple[datetime, int, int]:
    try:
        # The trace has seven digits of a second, Python reads six.
        when = datetime.fromisoformat(row["TIMESTAMP"].strip()[:26])
        tokens_in, tokens_out = int(row["ContextTokens"]), int(row["GeneratedTokens"])
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}, line {line}: {error}") from None
    if tokens_in < 1 or tokens_out < 1:
        raise ConfigError(f"{path}, line {line}: {tokens_in} tokens in, {tokens_out} out; expected at least 1 of each")
    return when, tokens_in, tokens_out
