"""A process that runs sections one after another, and is replaced when one fails or runs past its limit.

One process serves as long as all goes well, since importing torch and opening a GPU takes seconds; after an error it is
replaced, since a GPU that failed stays so for the process. It leads a process group, so that what it starts ends with
it. This file knows nothing of what a section does.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

FAREWELL_S = 2.0


class Worker:
    """Runs sections in a process that is started when it is first needed."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._process: BaseProcess | None = None
        self._line: Connection | None = None

    def run(self, where: str, results: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """What the function `module:function` gives for these results, or {"error"}; and the seconds it took."""
        started = time.monotonic()
        result = self._ask(where, results, limit_s)
        if "error" in result:
            self._end()
        return result | {"seconds": round(time.monotonic() - started, 1)}

    def close(self) -> None:
        """End the process. Idempotent."""
        self._end()

    def _ask(self, where: str, results: dict[str, Any], limit_s: float) -> dict[str, Any]:
        line = self._started()
        try:
            line.send((where, results))
            limit_s = round(max(0.0, limit_s), 1)
            if not line.poll(limit_s):
                return {"error": f"ran past its limit of {limit_s:g} s and was ended"}
            answer: dict[str, Any] = line.recv()
            return answer
        except (EOFError, OSError):
            assert self._process is not None
            self._process.join(FAREWELL_S)
            return {"error": f"its process died with exit status {self._process.exitcode}"}

    def _started(self) -> Connection:
        if self._line is None:
            self._line, theirs = self._context.Pipe()
            self._process = self._context.Process(target=serve, args=(theirs,), name="gpu_check")
            self._process.start()
            theirs.close()
        return self._line

    def _end(self) -> None:
        """With all that it started, which may outlive it."""
        if self._process is None or self._line is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._line.close()
        self._process = self._line = None


def serve(line: Connection) -> None:
    """The process: one section after another until the other end is gone."""
    os.setsid()
    while True:
        try:
            where, results = line.recv()
        except EOFError:
            return
        line.send(guarded(where, results))


def guarded(where: str, results: dict[str, Any]) -> dict[str, Any]:
    """What a section gives, or the error it ended with."""
    try:
        module, _, function = where.partition(":")
        result: dict[str, Any] = getattr(importlib.import_module(module), function)(results)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    return result
