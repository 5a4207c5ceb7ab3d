"""An engine in a child process, at the other end of a private socketpair: started, spoken to, ended.

The child is started afresh (no fork of this process's threads and locks), in a session of its own so that Ctrl-C in
the terminal reaches this process only, which then decides; it inherits stderr and one socket. What it is given and
what it gives are frames. This is one of two files that start programs; it knows nothing of what frames mean.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import kvik
from kvik.config import EngineConfig
from kvik.engine.remote.channel import FrontChannel
from kvik.engine.remote.frames import Close, Command, Event, Open
from kvik.errors import EngineError

PROGRAM = (sys.executable, "-m", "kvik.engine.remote.child")
STDERR = 2
SOCKET_BYTES = 1 << 20
_POLL_S = 0.005
_UTIME = 11
"""Of the fields after the name in /proc/PID/stat (proc(5)); the next one is the system time."""


class ProcessLink:
    """One engine process. `received` gets its events, `lost` the reason when there will be no more.

    `program` is the command that starts it; the socket's number and this process's id are appended.
    """

    can_be_killed = True

    def __init__(
        self,
        config: EngineConfig,
        received: Callable[[Event], None],
        lost: Callable[[str], None],
        *,
        beat_s: float,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._channel = FrontChannel(received, lost)
        self._open = Open(config, beat_s, str(Path.cwd()))
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the child; None before it is started and after it has ended."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def backlog(self) -> int:
        """Bytes of commands that the engine has not taken yet."""
        return self._channel.backlog

    def cpu_seconds(self) -> float:
        """Processor time of all threads of the child; 0 when there is none."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[_UTIME]) + int(fields[_UTIME + 1])) / os.sysconf("SC_CLK_TCK")

    async def start(self) -> None:
        """Start the child and tell it what to load. Raises EngineError if that is impossible."""
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            try:
                self._process = self._spawn(theirs)
            except OSError as error:
                ours.close()
                raise EngineError(f"the engine process cannot be started: {error}") from error
        await self._channel.connect(ours)
        self._channel.send(self._open)

    def send(self, command: Command) -> None:
        """Send a command, or nothing if the child has gone. Raises FrameTooLargeError."""
        self._channel.send(command)

    def dump(self) -> None:
        """Ask the child to write the stack of each of its threads to stderr."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGUSR1)

    async def end(self, patience_s: float = 0.0) -> str:
        """Ask the child to leave, kill it if it does not within `patience_s`, wait until it has gone. Returns how it
        ended. Idempotent.
        """
        if patience_s:
            self._channel.send(Close())
            await self._gone(patience_s)
        self._channel.close()
        process = self._process
        if process is None:
            return "was not started"
        if process.poll() is None:
            process.kill()
        await self._gone(None)
        await self._channel.wait_closed()
        return _how_it_ended(process.returncode)

    async def _gone(self, patience_s: float | None) -> None:
        """Wait until the child has ended, so long at most."""
        loop = asyncio.get_running_loop()
        until = None if patience_s is None else loop.time() + patience_s
        while self._process is not None and self._process.poll() is None:
            if until is not None and loop.time() >= until:
                return
            await asyncio.sleep(_POLL_S)

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._program, str(theirs.fileno()), str(os.getpid())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=STDERR,
            # Where this package was found: the child must find the same one, whatever lies in the current directory.
            cwd=Path(kvik.__file__).parents[1],
            start_new_session=True,
        )


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
