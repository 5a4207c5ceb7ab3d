"""Running a server: from a bound socket to the end of the process.

It listens before the model is loaded, so that whoever asks is told how far that is. The first signal stops new requests
and lets those under way finish, for a while; the second ends everything now. Either way no stream ends without saying
why. Knows nothing of flags or of the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from kvik.engine.remote.frames import ModelInfo
from kvik.errors import ConfigError
from kvik.server.app import App
from kvik.server.backend import Backend
from kvik.server.gate import Gate
from kvik.server.guard import Guard
from kvik.server.logs import Log, forward_libraries, where
from kvik.server.options import ConnectionOptions, ListenOptions
from kvik.server.protocol.errors import aborted

ACCEPT_BATCH = 8
"""Connections taken at a time, so that a flood of them does not hold up the others. Each has a file before it is
counted, and for a moment after it is turned away: several batches must fit the spare files, because asyncio takes no
connection for a second when it finds none.
"""
SWITCH_S = 0.0005
"""How long a thread that is busy with a long text may keep the others waiting. The event loop needs its turn several
times for every small request, so that a tenth of the interpreter's own choice is felt tenfold.
"""
BACKLOG = 2048
SEND_BUFFER = 65536
"""Bytes the system keeps for a client that does not read (it doubles them)."""
SPARE_FILES = 64
END_S = 1.0
"""For last events to be sent, and again for connections to close."""
LAST_WORDS_S, CLOSE_NOW_S = 0.3, 0.5
"""The same when it has to be quick."""
LOOK_S = 0.05
REPEAT_S = 60.0


class LoadableBackend(Backend):
    """A backend that says when it is loaded; what `AsyncLLM` is."""

    async def ready(self) -> ModelInfo:
        """Wait until the model is loaded. Raises why it cannot be."""
        raise NotImplementedError


def bind(listen: ListenOptions) -> socket.socket:
    """A socket on the address to listen on. Raises ConfigError."""
    place = f"{listen.host}:{listen.port}"
    try:
        found = socket.getaddrinfo(listen.host or None, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host is {listen.host!r}, which is no address of this machine: {error}") from None
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    # Named as TCP, so that asyncio sends small pieces at once.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.bind(address)
        sock.listen(ACCEPT_BATCH)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{place} is in use by another program; choose another --port, or stop it") from None
        raise ConfigError(f"{place} cannot be listened on: {error.strerror}") from None
    return sock


def connection_capacity(options: ConnectionOptions) -> int:
    """How many connections fit the files this process may have open; that limit is raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = options.max_connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(options.max_connections, soft - SPARE_FILES if soft > 0 else options.max_connections))


class HttpServer(uvicorn.Server):
    """uvicorn's server without a clock of its own and without a say in signals."""

    def __init__(self, app: App, gate: Gate) -> None:
        limits = app.service.options.connection
        guard: Any = functools.partial(Guard, limits=limits, gate=gate)
        super().__init__(
            uvicorn.Config(
                app,
                http=guard,
                ws="none",
                loop="asyncio",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                # Named, so that it does not look for them in the environment.
                forwarded_allow_ips="127.0.0.1",
                workers=1,
                server_header=False,
                date_header=False,
                backlog=ACCEPT_BATCH,
                timeout_graceful_shutdown=int(END_S),
            )
        )
        self.listening = asyncio.Event()
        self._ended = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn: who handles signals. Not it."""
        yield

    async def main_loop(self) -> None:
        """uvicorn: as long as it serves."""
        self.listening.set()
        await self._ended.wait()

    def end(self) -> None:
        """Close everything. Idempotent."""
        self.should_exit = True
        self._ended.set()


@dataclass
class Signals:
    """What the user has asked for."""

    def __post_init__(self) -> None:
        self.stop, self.now = asyncio.Event(), asyncio.Event()
        self.interrupted = False

    def come(self, number: int) -> None:
        """A signal to stop has come; the second one means now."""
        self.interrupted |= number == signal.SIGINT
        (self.now if self.stop.is_set() else self.stop).set()


class Running:
    """A server while it runs. `main` is its whole life; tests that bring signals of their own set `signals`."""

    def __init__(self, app: App, backend: Any, sock: socket.socket, signals: Signals) -> None:
        self.app, self.service, self._backend, self._socket = app, app.service, backend, sock
        self.signals = signals
        self._log = self.service.log
        meter = self.service.meter
        self.gate = Gate(connection_capacity(self.service.options.connection), meter.refused, meter.cut)
        self.service.connections = self.gate.__len__
        self.http = HttpServer(app, self.gate)
        self._started = time.monotonic()

    async def main(self) -> None:
        """Serve until a signal comes. Raises KvikError if the model cannot be loaded."""
        switch_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        serving = asyncio.ensure_future(self.http.serve(sockets=[self._socket]))
        loading = asyncio.ensure_future(self._backend.ready())
        stopping = asyncio.ensure_future(self.signals.stop.wait())
        try:
            await self.http.listening.wait()
            # asyncio takes as many connections in a row as it was told to let wait; the two need not be the same.
            self._socket.listen(BACKLOG)
            host, port = self._socket.getsockname()[:2]
            self._log.info("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")
            await asyncio.wait({loading, stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                self._loaded(loading.result())
                await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
        finally:
            for task in (loading, stopping):
                task.cancel()
            await self._end(serving)
            sys.setswitchinterval(switch_s)

    def _loaded(self, info: ModelInfo) -> None:
        # What was loaded stays; the collector of garbage need not look at it again.
        gc.collect()
        gc.freeze()
        loaded = self.service.known()
        loaded.texts.prepare()
        self._log.info(
            "ready",
            model=",".join(each.id for each in loaded.models),
            max_model_len=info.max_model_len,
            kv_tokens=info.num_blocks * info.block_size,
            backend=info.backend,
            seconds=time.monotonic() - self._started,
        )

    async def _drain(self) -> None:
        """Take nothing new; wait for what is under way, until that takes too long or a second signal comes."""
        service = self.service
        service.draining = True
        timeout = service.options.flow.drain_timeout
        self._log.info("draining", unanswered=service.unanswered(), timeout_s=timeout)
        until = time.monotonic() + timeout
        while service.unanswered() and time.monotonic() < until and not self.signals.now.is_set():
            await asyncio.sleep(LOOK_S)
        if unanswered := service.unanswered():
            self._log.warning("drain_cut_short", unanswered=unanswered)

    async def _end(self, serving: asyncio.Future[None]) -> None:
        """Tell whoever is left, and close everything."""
        self.service.draining = True
        self.service.end_all(aborted())
        until = time.monotonic() + (LAST_WORDS_S if self.signals.now.is_set() else END_S)
        while self.service.open and time.monotonic() < until:
            await asyncio.sleep(LOOK_S / 5)
        self.http.end()
        closing = asyncio.ensure_future(self._backend.close())
        await asyncio.wait({closing, serving}, timeout=CLOSE_NOW_S if self.signals.now.is_set() else None)
        if not closing.done() and (pid := getattr(self._backend, "engine_pid", None)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.service.close()


def quiet_loop(log: Log) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """What the event loop does with exceptions that nobody takes: a line, and of each kind one a minute."""
    last: dict[str, float] = {}

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message, error = str(context.get("message")), context.get("exception")
        kind = message[:80]
        if loop.time() - last.get(kind, -REPEAT_S) >= REPEAT_S:
            last[kind] = loop.time()
            log.warning("event_loop", message=kind, raised=where(error) if error else None)

    return handle


async def run(launch: Callable[[], Any], make_app: Callable[[Any], App], sock: socket.socket, log: Log) -> bool:
    """One server in this process, until a signal ends it. Returns whether it was Ctrl-C. Raises KvikError."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(quiet_loop(log))
    forward_libraries(log)
    signals = Signals()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.come, number)
    backend = launch()
    running = Running(make_app(backend), backend, sock, signals)
    try:
        await running.main()
    finally:
        log.info("stopped")
        log.close()
        if signals.now.is_set():
            os._exit(130 if signals.interrupted else 0)
    return signals.interrupted
