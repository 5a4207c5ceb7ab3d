"""Requests that nobody would write: never a 5xx, never silence, and the server is well afterwards."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from live_server import LiveServer, chat, chunked, head_of, post, prompt, rest_of

ROUNDS, AT_ONCE = 800, 200


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer(
        "fake:length=2",
        header_timeout=0.2,
        body_timeout=0.2,
        body_total_timeout=0.5,
        keep_alive=0.5,
        max_body_bytes=4096,
    ) as running:
        yield running


SEEDS = [
    head_of("GET", "/health"),
    post("/v1/completions", prompt(max_tokens=2)),
    post("/v1/chat/completions", chat(max_tokens=2, stream=True)),
    chunked("/v1/completions", b'{"model":"fake",', b'"prompt":"a","max_tokens":2}'),
    head_of("GET", "/v1/models/fake", connection="keep-alive, Upgrade", upgrade="h2c"),
    post("/tokenize", {"prompt": "hello"}, expect="100-continue"),
]
PIECES = [
    b"\r\n",
    b"\n",
    b"\0",
    b" ",
    b":",
    b"\xff",
    b"HTTP/1.1",
    b"Content-Length: 3\r\n",
    b"0\r\n\r\n",
    b"%",
    b"{",
    b'"',
    b"-1",
]


def mutated(rng: random.Random) -> bytes:
    """A request with a few things wrong."""
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            data[place:place] = rng.choice(PIECES)
        elif kind == 1:
            del data[place : place + rng.randint(1, 20)]
        elif kind == 2 and place < len(data):
            data[place] = rng.randrange(256)
        elif kind == 3:
            data[place:place] = data[place : place + rng.randint(1, 40)] * rng.randint(1, 3)
        else:
            data += rng.choice(SEEDS)
    return bytes(data)


def statuses(data: bytes) -> list[int]:
    """Of all replies in what came back."""
    return [int(each[:3]) for each in data.split(b"HTTP/1.1 ")[1:] if each[:3].isdigit()]


def answered(server: LiveServer, requests: list[bytes]) -> list[tuple[bytes, bytes]]:
    """All of them at once, each with everything that came back until the server closed."""
    with ExitStack() as held:
        socks = [held.enter_context(server.connect()) for _ in requests]
        for number, (sock, request) in enumerate(zip(socks, requests, strict=True)):
            sock.sendall(request)
            if number % 2:
                sock.shutdown(socket.SHUT_WR)
        return [(request, rest_of(sock)) for sock, request in zip(socks, requests, strict=True)]


def test_mutated_requests(server: LiveServer) -> None:
    rng = random.Random(11)
    seen: dict[int, int] = {}
    for _ in range(ROUNDS // AT_ONCE):
        for request, data in answered(server, [mutated(rng) for _ in range(AT_ONCE)]):
            assert len(data) <= 40_000
            for status in statuses(data):
                assert status < 500, request
                seen[status] = seen.get(status, 0) + 1
    assert {200, 400} <= set(seen)
    server.wait_for(lambda: len(server.gate) == 0)
    server.wait_for(server.is_idle)
    assert not [line for line in server.lines if " internal_error " in line or " library " in line]


VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    1.5,
    "",
    "a",
    "\0",
    [],
    [[]],
    [None],
    {},
    {"a": {}},
    [1, "a"],
    "x" * 3000,
]
FIELDS = [
    *(
        "model",
        "prompt",
        "messages",
        "n",
        "stream",
        "stream_options",
        "stop",
        "seed",
        "logprobs",
        "echo",
        "tools",
        "user",
    ),
    *("temperature", "max_tokens", "response_format", "tool_choice", "logit_bias", "guided_regex", "guided_json"),
    *("top_logprobs", "min_tokens", "deadline_s", "priority", "chat_template_kwargs", "suffix", "best_of", "tokens"),
]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_fields_of_any_kind(server: LiveServer, path: str) -> None:
    rng = random.Random(path)
    base = chat(max_tokens=2) if "chat" in path else prompt(max_tokens=2)
    for _ in range(ROUNDS // 4):
        body = base | {rng.choice(FIELDS): rng.choice(VALUES) for _ in range(rng.randint(1, 3))}
        reply = server.post(path, body)
        assert reply.status < 500, body
        if reply.status >= 400:
            assert reply.error["type"] == "invalid_request_error"
    assert server.is_idle()
