"""A server in a thread of the test, with the fake model behind it, and clients that speak raw bytes to it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from http.client import HTTPResponse
from types import TracebackType
from typing import Any, TypeVar

from kvik.engine.async_llm import AsyncLLM
from kvik.server.assemble import make_app
from kvik.server.logs import Log
from kvik.server.options import ServerOptions
from kvik.server.run import Running, Signals, bind, quiet_loop

T = TypeVar("T")
WAIT_S = 30.0
"""Long enough for a machine that does something else meanwhile."""
JSON = "application/json"


@dataclass(frozen=True)
class Reply:
    """A reply as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of a refusal, which has exactly the four keys and is short."""
        value = self.json
        assert list(value) == ["error"]
        assert set(value["error"]) == {"message", "type", "param", "code"}
        assert len(self.body) <= 4096
        assert "x-request-id" in self.headers
        return value["error"]  # type: ignore[no-any-return]

    @property
    def events(self) -> list[Any]:
        """The objects of a stream; [DONE] as it is."""
        lines = [line[6:] for line in self.body.decode().split("\n\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


def read_reply(sock: socket.socket, method: str = "POST") -> Reply:
    """The next reply on a connection."""
    with HTTPResponse(sock, method=method) as response:
        response.begin()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def head_of(method: str, path: str, **headers: Any) -> bytes:
    """The line and headers of a request; `content_length=5` is Content-Length."""
    given = {"host": "localhost"} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def post(path: str, body: Any, **headers: Any) -> bytes:
    """A request with a JSON body, whole."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head_of("POST", path, **{"content_type": JSON, "content_length": len(data)} | headers) + data


def chunked(path: str, *pieces: bytes, **headers: Any) -> bytes:
    """A request whose body comes in chunks, the last one included."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return head_of("POST", path, **{"content_type": JSON, "transfer_encoding": "chunked"} | headers) + body


def prompt(text: Any = "hello", **fields: Any) -> dict[str, Any]:
    """The body of a completion."""
    return {"model": "fake", "prompt": text} | fields


def chat(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": "fake", "messages": [{"role": "user", "content": text}]} | fields


class LiveServer:
    """A running server; `options` are those of `kvik serve`, `engine` those of the model."""

    def __init__(self, model: str = "fake:", engine: dict[str, Any] | None = None, **options: Any) -> None:
        given = {"port": 0, "served_model_name": ("fake",), "log_level": "debug", "drain_timeout": 0.5} | options
        self.options = ServerOptions.from_options(**given)
        self._model, self._engine = model, engine or {}
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server")
        self._lines = io.StringIO()
        self._log = Log(self._lines, self.options.flow.log_level)
        self._marks = itertools.count()
        self.failure: BaseException | None = None

    # Its life

    def __enter__(self) -> LiveServer:
        self._thread.start()
        assert self._listening.wait(WAIT_S)
        self.wait_for(lambda: self.service.loaded is not None or self.failure is not None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        self._log.close()

    def stop(self) -> None:
        """What a signal does."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.signals.come, 15)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self.failure = error
            self._listening.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(quiet_loop(self._log))
        self.signals = Signals()
        self.llm = AsyncLLM.launch(self._model, **self._engine)
        app = make_app(self.llm, self.options, self._log)
        self.service, self.app = app.service, app
        sock = bind(self.options.listen)
        self.port = sock.getsockname()[1]
        running = Running(app, self.llm, sock, self.signals)
        self.gate = running.gate
        self._loop.call_soon(self._listening.set)
        await running.main()

    # Looking inside

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """A coroutine on the server's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def wait_for(self, claim: Callable[[], bool], within: float = WAIT_S) -> None:
        """Until a claim holds."""
        until = time.monotonic() + within
        while not claim():
            assert time.monotonic() < until, "it did not happen in time"
            time.sleep(0.002)

    def engine(self) -> dict[str, Any]:
        """The engine's counters."""
        stats = self.run(self.service.engine_stats())
        assert stats is not None
        return stats

    def is_idle(self) -> bool:
        """Whether nothing is left of any request, anywhere."""
        stats = self.engine()
        counts = self.service.counts()
        return (
            stats["requests_running"] == stats["requests_waiting"] == stats["blocks_used"] == 0
            and counts["requests_open"] == counts["seats_taken"] == counts["requests_queued"] == 0
            and counts["body_bytes"] == 0
        )

    @property
    def lines(self) -> list[str]:
        """The log of all requests that have been answered."""
        self.wait_for(lambda: not self.service.open)
        mark = f"mark-{next(self._marks)}"
        self._log.error(mark)
        self.wait_for(lambda: mark in self._lines.getvalue())
        return [line for line in self._lines.getvalue().splitlines() if " mark-" not in line]

    # Talking to it

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """A connection; with a small buffer if this client is to be slow."""
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(WAIT_S)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def send(self, request: bytes, method: str = "POST") -> Reply:
        """One request on a connection of its own."""
        with self.connect() as sock:
            sock.sendall(request)
            return read_reply(sock, method)

    def get(self, path: str, method: str = "GET", **headers: Any) -> Reply:
        """A request without a body."""
        return self.send(head_of(method, path, **headers), method)

    def post(self, path: str, body: Any, **headers: Any) -> Reply:
        """A request with a JSON body."""
        return self.send(post(path, body, **headers))


def is_closed(sock: socket.socket) -> bool:
    """Whether the server has ended the connection; waits for that, or for anything else to come."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def rest_of(sock: socket.socket) -> bytes:
    """Everything up to the end of a connection, however it ends."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data
