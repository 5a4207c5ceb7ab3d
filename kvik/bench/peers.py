"""Engines side by side, each in a process of its own that speaks JSON lines: started, asked, stopped, ended.

Only one works at a time: a peer is frozen (SIGSTOP) except while it answers, so that threads which spin while they
wait take nothing from the one that is measured. The protocol is described in docs/peers.md. This file starts programs
that are not ours; it knows nothing of what is measured.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from kvik.errors import KvikError

RECORD = "peer.json"
MAX_LINE_BYTES = 256 * 2**20
LAST_WORDS = 300
CHUNK = 1 << 16


class PeerError(KvikError):
    """A peer could not be started, did not answer in time, ended, or answered that it failed."""


@dataclass(frozen=True)
class PeerProgram:
    """An installed engine: the command that starts its driver."""

    name: str
    command: tuple[str, ...]


def find_peer(root: Path, name: str) -> PeerProgram | str:
    """The engine installed under root/name, or why it cannot be used. Raises PeerError for a damaged record."""
    record = root / name / RECORD
    if not record.exists():
        return f"not installed: no {record}; `python tools/peers/setup.py {name} --root {root}` in a checkout does it"
    try:
        command = json.loads(record.read_text(encoding="utf-8"))["command"]
        if not (isinstance(command, list) and command and all(isinstance(word, str) for word in command)):
            raise ValueError("`command` is not a list of words")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PeerError(f"{record} is damaged ({type(error).__name__}: {error}); set {name} up again") from error
    missing = next((word for word in command[:2] if word.startswith("/") and not Path(word).exists()), None)
    if missing is not None:
        return f"not installed: {missing} has gone; `python tools/peers/setup.py {name} --root {root}` makes it again"
    return PeerProgram(name, tuple(command))


class Peer:
    """A running engine. What its libraries say goes to a log, of which the end is in every error."""

    def __init__(self, program: PeerProgram, *, label: str | None = None) -> None:
        """Start the program. Raises PeerError if that is impossible."""
        self.label = label or program.name
        self._buffer = b""
        self._log = tempfile.NamedTemporaryFile(prefix=f"kvik-peer-{program.name}-", suffix=".log")  # noqa: SIM115
        try:
            # In a process group of its own, within this session: signals reach its helpers too, Ctrl-C does not, and
            # should this process vanish while the peer is frozen, the kernel ends the orphaned group.
            self._process = subprocess.Popen(
                program.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                preexec_fn=os.setpgrp,
            )
        except OSError as error:
            self._log.close()
            raise PeerError(f"{self.label} cannot be started: {program.command[0]}: {error.strerror}") from error

    @property
    def pid(self) -> int:
        """Process id of the driver, and of its process group."""
        return self._process.pid

    def ask(self, message: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        """Wake the peer, send one message, wait for the answer, freeze it again. Raises PeerError."""
        self._signal(signal.SIGCONT)
        try:
            self._send(json.dumps(message).encode() + b"\n")
            reply = self._parse(self._read_line(timeout))
        finally:
            self._signal(signal.SIGSTOP)
        if not reply.get("ok"):
            raise PeerError(f"{self.label} failed: {reply.get('error', 'it did not say why')}")
        return reply

    def close(self, patience: float = 10.0) -> None:
        """Ask the peer to leave, and end it and its helpers if it does not. Idempotent."""
        self._signal(signal.SIGCONT)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                _close_quietly(stream)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(patience=10.0 if kind is None else 0.5)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError as error:
            raise self._gone() from error

    def _read_line(self, timeout: float) -> bytes:
        """One line. The pipe is read without Python's buffer, which `select` could not see into."""
        assert self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + timeout
        pieces = [self._buffer]
        size = len(self._buffer)
        while b"\n" not in pieces[-1]:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise PeerError(f"{self.label} did not answer within {timeout:g} s{self._last_words()}")
            pieces.append(os.read(pipe, CHUNK))
            size += len(pieces[-1])
            if not pieces[-1]:
                raise self._gone()
            if size > MAX_LINE_BYTES:
                raise PeerError(f"{self.label} answered with more than {MAX_LINE_BYTES} bytes in a line")
        line, _, self._buffer = b"".join(pieces).partition(b"\n")
        return line

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(line)
        except ValueError as error:
            raise PeerError(f"{self.label} answered with something that is not JSON: {line[:80]!r}") from error
        if not isinstance(reply, dict):
            raise PeerError(f"{self.label} answered {line[:80]!r}; expected a JSON object")
        return reply

    def _gone(self) -> PeerError:
        try:
            status = f"with status {self._process.wait(5)}"
        except subprocess.TimeoutExpired:
            status = "its output"
        return PeerError(f"{self.label} ended {status}{self._last_words()}")

    def _last_words(self) -> str:
        """The end of the log."""
        try:
            text = Path(self._log.name).read_bytes()[-4 * LAST_WORDS :].decode("utf-8", "replace")
        except OSError:
            return ""
        words = " ".join(text.split())[-LAST_WORDS:]
        return f"; its last words: {words}" if words else ""


def _close_quietly(stream: Any) -> None:
    """Closing flushes, and the reader may be gone."""
    try:
        stream.close()
    except OSError:
        return
