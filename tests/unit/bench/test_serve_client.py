"""The client against a server that says exactly what a test wants, in the pieces a test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from kvik.bench.serve.connection import Pool
from kvik.bench.serve.replies import Document, LoadError, Reply
from kvik.bench.serve.target import Target
from kvik.errors import ConfigError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = (
    b'data: {"choices":[{"index":0,"text":"one","finish_reason":null}],"usage":null}\n\n',
    b'data: {"choices":[{"index":0,"text":" two","finish_reason":null}],"usage":null}\n\n',
    b'data: {"choices":[{"index":0,"text":"","finish_reason":"length"}],"usage":null}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
)


def chunked(*pieces: bytes) -> bytes:
    """Pieces as chunks, and the last one."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


WHOLE = HEAD + chunked(*EVENTS)


class Scripted:
    """A server that answers every request with the next script: pieces, each sent on its own, then perhaps an end."""

    def __init__(self, *scripts: Sequence[bytes], ends: bool = False) -> None:
        self._scripts, self._ends = list(scripts), ends
        self.connections = 0
        self._over: list[asyncio.Event] = []
        self.heads: list[bytes] = []

    async def __aenter__(self) -> Pool:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self._ticks = 0
        self.pool = Pool(Target("127.0.0.1", port, key="secret"), self._tick, timeout_s=20)
        return self.pool

    def _tick(self) -> float:
        self._ticks += 1
        return float(self._ticks)

    async def __aexit__(self, *_: object) -> None:
        self.pool.close()
        self._server.close()
        for over in self._over:
            await over.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        over = asyncio.Event()
        self._over.append(over)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
                for piece in self._scripts.pop(0) if self._scripts else ():
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if self._ends:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        over.set()


def ask(server: Scripted, *, document: bool = False) -> Any:
    """One request."""

    async def run() -> Reply:
        async with server as pool:
            body: Any = {"prompt": "x"}
            return await pool.ask(pool.target.post("/completions", body), Document() if document else None)

    return asyncio.run(run())


@pytest.mark.parametrize("size", [1, 2, 7, 50, 4096])
def test_a_stream_is_read_alike_however_it_is_cut(size: int) -> None:
    pieces = [WHOLE[start : start + size] for start in range(0, len(WHOLE), size)]
    reply = ask(Scripted(pieces))
    assert (reply.text, reply.pieces) == ("one two", ["one", " two"])
    assert (reply.input_tokens, reply.output_tokens) == (7, 2)
    assert (reply.finish_reason, reply.done) == ("length", True)
    assert len(reply.text_times) == 2
    assert reply.text_times[0] <= reply.text_times[1] <= reply.finish_time


def test_lines_may_end_in_two_characters_and_comments_are_passed_over() -> None:
    events = [event.replace(b"\n", b"\r\n") for event in EVENTS]
    reply = ask(Scripted([HEAD + chunked(b": ping\r\n\r\n", *events)]))
    assert (reply.text, reply.output_tokens) == ("one two", 2)


def test_a_role_is_not_a_first_token() -> None:
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
    text = b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
    thought = b'data: {"choices":[{"delta":{"reasoning_content":"hm"},"finish_reason":null}]}\n\n'
    end = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    reply = ask(Scripted([HEAD + chunked(role, thought, text, end, EVENTS[-1])]))
    assert reply.pieces == ["hm", "hi"]
    assert reply.output_tokens is None, "nobody said how many"


def test_a_whole_reply_has_text_and_usage() -> None:
    body = b'{"choices":[{"text":"all","finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":3}}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    reply = ask(Scripted([head + body]))
    assert (reply.text, reply.output_tokens, len(reply.text_times)) == ("all", 3, 1)
    until_closed = ask(Scripted([b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + body], ends=True))
    assert until_closed.text == "all"


def test_connections_are_used_again_and_carry_the_key() -> None:
    server = Scripted([WHOLE], [WHOLE], [WHOLE])

    async def run() -> None:
        async with server as pool:
            request = pool.target.post("/completions", {"prompt": "x"})
            for _ in range(2):
                await pool.ask(request)
            assert (pool.opened, server.connections) == (1, 1)

    asyncio.run(run())
    assert all(b"\r\nAuthorization: Bearer secret\r\n" in head for head in server.heads)
    assert server.heads[0].startswith(b"POST /v1/completions HTTP/1.1\r\n")


REFUSED = b'{"error":{"message":"too busy","type":"server_error","param":null,"code":"overloaded"}}'


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n%s" % (len(REFUSED), REFUSED), "http 503"),
        (HEAD + chunked(EVENTS[0], b"data: " + REFUSED + b"\n\n"), "error overloaded"),
        (HEAD + chunked(EVENTS[0]), "cut"),
        (HEAD + b"5\r\ndata:", "cut"),
        (HEAD[:20], "cut"),
        (HEAD + chunked(b"data: {nonsense\n\n"), "malformed"),
        (HEAD + b"zz\r\nxx", "malformed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot json!", "malformed"),
    ],
)
def test_what_goes_wrong_is_named(script: bytes, kind: str) -> None:
    with pytest.raises(LoadError) as raised:
        ask(Scripted([script], ends=True))
    assert raised.value.kind == kind


def test_the_servers_words_are_in_the_error() -> None:
    with pytest.raises(LoadError, match="http 503: too busy"):
        ask(Scripted([b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n%s" % (len(REFUSED), REFUSED)]))


def test_nobody_there_and_silence() -> None:
    async def nobody() -> None:
        server = Scripted()
        async with server as pool:
            pass
        await pool.ask(pool.target.get("/stats"))

    with pytest.raises(LoadError) as raised:
        asyncio.run(nobody())
    assert raised.value.kind == "connect"

    async def silence() -> None:
        async with Scripted([HEAD]) as pool:
            pool.timeout_s = 0.05
            await pool.ask(pool.target.get("/stats"))

    with pytest.raises(LoadError) as raised:
        asyncio.run(silence())
    assert raised.value.kind == "timeout"


def test_any_json_can_be_fetched() -> None:
    body = b'{"engine":{"steps":3}}'
    script = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    assert ask(Scripted([script]), document=True).value == {"engine": {"steps": 3}}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://api.example.com/openai/v1", "https://api.example.com:443/openai/v1"),
        ("http://[::1]:9", "http://[::1]:9/v1"),
    ],
)
def test_a_url_may_leave_out_what_is_usual(url: str, expected: str) -> None:
    assert Target.parse(url).url == expected


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://x:99999", "http://x/v1?y=1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="url is"):
        Target.parse(url)


def test_a_key_is_one_line_of_a_header() -> None:
    with pytest.raises(ConfigError, match="api_key: expected printable ASCII"):
        Target.parse("http://x", "a\r\nEvil: yes")
