"""The server under test: one that is started for the occasion, or one that runs somewhere and is only spoken to.

Of its own it can see processes, files, memory and the log, and it can kill its engine. Knows nothing of what is tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import kvik
from kvik.checkpoint.fake import FakeOptions
from tools.soak.asks import LENGTHS, MODEL
from tools.soak.wire import Address, LostError, ask

PATIENCE_S = 60.0
"""For what must happen by itself in the end."""
SOUND = f"fake:length={LENGTHS[0]}-{LENGTHS[1]}"


def free_port() -> int:
    """One that nobody listens on, and that no connection is given by chance between now and its use."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Server:
    """A server at an address."""

    def __init__(self, address: Address, model: str = SOUND) -> None:
        self.address = address
        self.options = FakeOptions.parse(model.removeprefix("fake:"))

    async def stats(self) -> Any:
        """What /stats says."""
        return (await ask(self.address, "GET", "/stats"))[1]

    async def is_ready(self) -> bool:
        """What /health/ready says."""
        return (await ask(self.address, "GET", "/health/ready"))[0].status == 200

    async def until(self, claim: Callable[[Any], bool]) -> Any:
        """The statistics once they are as claimed. Raises TimeoutError with the last ones."""
        end = time.monotonic() + PATIENCE_S
        while True:
            stats = await self.stats()
            if claim(stats):
                return stats
            if time.monotonic() > end:
                raise TimeoutError(f"after {PATIENCE_S:.0f} s: {stats['server']}, {stats['health']}")
            await asyncio.sleep(0.02)

    async def until_ready(self) -> float:
        """Seconds until it is."""
        start = time.monotonic()
        while time.monotonic() < start + PATIENCE_S:
            try:
                if await self.is_ready():
                    return time.monotonic() - start
            except LostError:
                pass
            await asyncio.sleep(0.02)
        raise TimeoutError(f"not ready after {PATIENCE_S:.0f} s")


class OwnServer(Server):
    """`kvik serve` as a process on a free port. Use as a context.

    `files`: most open files. `log`: where it writes instead of a file of its own; it cannot be read then. `python`: a
    folder that its Python looks into first.
    """

    def __init__(
        self,
        model: str = SOUND,
        *args: str,
        files: int | None = None,
        log: Path | None = None,
        python: Path | None = None,
        port: int = 0,
        key: str | None = None,
    ) -> None:
        super().__init__(Address("127.0.0.1", port or (free_port() if log else 0), key), model)
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        flags = ["--model", model, "--port", str(self.address.port), "--served-model-name", MODEL, "--threads", "1"]
        command = [sys.executable, "-m", "kvik", "serve", *flags, *args]
        limited = command if files is None else ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
        folders = [*([str(python)] if python else []), str(Path(kvik.__file__).parents[1])]
        with contextlib.ExitStack() as held:
            self._process = subprocess.Popen(
                limited,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=held.enter_context(log.open("w")) if log else self._log,
                cwd="/",
                env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
                start_new_session=True,
            )

    def __enter__(self) -> OwnServer:
        try:
            if not self.address.port:
                self.address = Address("127.0.0.1", self._listening(), self.address.key)
        except BaseException:
            self._end()
            raise
        return self

    def _listening(self) -> int:
        """The port, once it listens."""
        end = time.monotonic() + PATIENCE_S
        while not (found := re.search(r" listening .*:(\d+)$", self.log, re.M)):
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {self.log}")
            time.sleep(0.01)
        return int(found[1])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._log.close()

    @property
    def log(self) -> str:
        """All that it has said."""
        return Path(self._log.name).read_text(encoding="utf-8")

    async def is_ready(self) -> bool:
        """What /health/ready says. Raises RuntimeError if the process has ended, so that nobody else is asked."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the server has ended: {self.log[-2000:]}")
        return await super().is_ready()

    @property
    def pid(self) -> int:
        """Of the server's own process."""
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def status(self) -> int:
        """Its exit status, once it has ended. Raises TimeoutError."""
        end = time.monotonic() + PATIENCE_S
        while (status := self._process.poll()) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"the server goes on {PATIENCE_S:.0f} s after it should have ended")
            await asyncio.sleep(0.005)
        return status

    def cpu_s(self) -> float:
        """Processor time of the server's own process so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def engine_pid(self) -> int:
        """Its child process. Raises LostError while it has none."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            raise LostError("the server has no child process")
        return int(children[0])

    async def replace_engine(self) -> tuple[float, float]:
        """kill -9; seconds until /health/ready says so, and until another engine is ready."""
        before, start = self.engine_pid, time.monotonic()
        os.kill(before, signal.SIGKILL)
        while await self.is_ready():
            if time.monotonic() - start > PATIENCE_S:
                raise TimeoutError("it is said to be ready without an engine")
        noticed_s = time.monotonic() - start
        await self.until_ready()
        return noticed_s, time.monotonic() - start

    def num_files(self) -> int:
        """Open files of both processes."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (self._process.pid, self.engine_pid))

    def num_threads(self) -> int:
        """Of both processes."""
        return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in (self._process.pid, self.engine_pid))

    def rss_bytes(self) -> int:
        """Resident memory of the server's own process, without the engine's."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
