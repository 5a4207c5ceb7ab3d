"""Logs: one line per event on a stream, `key=value` after time, level and event.

Whatever a value holds, a line is one line of printable ASCII, so that neither a client nor a model can forge a line or
speak to a terminal. Lines are written by a thread of their own: a disk that is full or a pipe that nobody reads costs
lines, which are counted, and nothing else. Prompts, answers and keys are never given to this file.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TextIO

from kvik.server.options import LOG_LEVELS

MAX_VALUE_CHARS = 300
MAX_WAITING = 10_000
"""Lines that wait to be written; what comes on top is dropped."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+@%,*()[]<>!?&#~^$;|{}'")
_FOREIGN = re.compile(r"([A-Za-z_]\w*): ")
_FROM_LOGGING = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"))


def shown(value: Any) -> str:
    """A value for a log line: plain text as it is, anything else quoted with escapes, cut at 300 characters."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if len(text) > MAX_VALUE_CHARS:
        text = text[:MAX_VALUE_CHARS] + "..."
    if text and _PLAIN.issuperset(text):
        return text
    return '"' + ascii(text)[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'


def line(when: float, level: str, event: str, fields: dict[str, Any]) -> str:
    """One event as one line, without the line break. Fields that are None are left out."""
    stamp = datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    given = "".join(f" {name}={shown(value)}" for name, value in fields.items() if value is not None)
    return f"{stamp} {level} {event}{given}"


def where(error: BaseException) -> str:
    """What was raised and where, without its message, which may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}" if places else type(error).__name__


def own_words(message: str) -> str:
    """The message of an engine's error. Of what others raised inside it only the kind, since their words may quote a
    prompt.
    """
    foreign = _FOREIGN.match(message)
    return foreign[1] if foreign else message


class Log:
    """Lines of at least `level` on `stream`. `close` writes what waits, for a moment at most."""

    def __init__(self, stream: TextIO, level: str = "info", clock: Callable[[], float] = time.time) -> None:
        self._stream, self._clock = stream, clock
        self._least = LOG_LEVELS.index(level)
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.dropped = 0
        """Lines that were never written."""
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def debug(self, event: str, **fields: Any) -> None:
        """For whoever looks for a fault."""
        self._put("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What happens all the time."""
        self._put("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """What somebody should look at."""
        self._put("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """What should not have happened."""
        self._put("error", event, fields)

    def close(self) -> None:
        """Idempotent."""
        self._queue.put(None)
        self._thread.join(1.0)

    def _put(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if LOG_LEVELS.index(level) < self._least:
            return
        if self._queue.qsize() >= MAX_WAITING:
            self.dropped += 1
        else:
            self._queue.put(line(self._clock(), level, event, fields))

    def _write(self) -> None:
        told = 0
        while (text := self._queue.get()) is not None:
            if self.dropped > told:
                text += f"\n{line(self._clock(), 'warning', 'log_lines_lost', {'lines': self.dropped - told})}"
                told = self.dropped
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                self.dropped += 1


class Forward(logging.Handler):
    """Lines of libraries (uvicorn, asyncio), at most one a second for each source, as lines of a `Log`."""

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._log, self._clock = log, clock
        self._last: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """logging: one record."""
        now = self._clock()
        if now - self._last.get(record.name, -1.0) < 1.0:
            return
        self._last[record.name] = now
        level = next((name for least, name in _FROM_LOGGING if record.levelno >= least), "debug")
        error = record.exc_info[1] if record.exc_info else None
        own = record.name.startswith("kvik")
        # What others put into their messages is not known to be fit for a log.
        fields = {"source": record.name, "message": record.getMessage() if own else str(record.msg).split("\n")[0]}
        if error is not None:
            fields["raised"] = where(error)
        getattr(self._log, level)("library", **fields)


def forward_libraries(log: Log) -> None:
    """Let what uvicorn, asyncio, the engine's supervisor and OpenTelemetry say come out here, and nowhere else."""
    for name in ("uvicorn", "asyncio", "kvik", "opentelemetry"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [Forward(log)], False
        logger.setLevel(logging.WARNING)
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
