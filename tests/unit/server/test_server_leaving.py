"""Clients that leave, at every point of a request: nothing of it is left anywhere, at once."""

from __future__ import annotations

import json
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from live_server import LiveServer, chat, chunked, head_of, post, prompt, read_reply

STEP_MS = 10
COMPLETIONS = "/v1/completions"
BODY = json.dumps(prompt(max_tokens=5000)).encode()
SOON_S = 1.0
"""A step and 0.1 s is what is promised; the rest is for a machine that is busy with other things."""


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """Two seats and two in reserve, long answers, prompts that take many steps."""
    engine = {"max_num_seqs": 2, "max_num_batched_tokens": 64, "prefix_caching": False}
    with LiveServer(f"fake:length=100000,step_ms={STEP_MS},max_model_len=20000", engine) as running:
        yield running


def leave(sock: socket.socket, how: str) -> None:
    """With a word (FIN), or by hanging up (RST)."""
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def is_gone_soon(server: LiveServer) -> bool:
    start = time.monotonic()
    server.wait_for(server.is_idle)
    return time.monotonic() - start < SOON_S


def busy(server: LiveServer) -> int:
    stats = server.engine()
    return int(stats["requests_running"] + stats["requests_waiting"])


HOW = pytest.mark.parametrize("how", ["close", "reset"])
STREAM = pytest.mark.parametrize("stream", [False, True])


@HOW
@pytest.mark.parametrize("sent", [0, 1, 40, -len(BODY), 5 - len(BODY), -1])
def test_before_the_request_is_whole(server: LiveServer, how: str, sent: int) -> None:
    request = post(COMPLETIONS, BODY)
    sock = server.connect()
    sock.sendall(request[:sent] if sent else b"")
    leave(sock, how)
    server.wait_for(lambda: len(server.gate) == 0)
    assert server.is_idle()


@HOW
def test_in_the_middle_of_a_chunk(server: LiveServer, how: str) -> None:
    sock = server.connect()
    sock.sendall(chunked(COMPLETIONS, BODY)[:-20])
    leave(sock, how)
    server.wait_for(lambda: len(server.gate) == 0)
    assert server.is_idle()


@HOW
@STREAM
def test_while_the_text_is_made_into_tokens(server: LiveServer, how: str, stream: bool) -> None:
    sock = server.connect()
    sock.sendall(post(COMPLETIONS, prompt("word " * 3000, max_tokens=4000, stream=stream)))
    leave(sock, how)
    assert is_gone_soon(server)


@HOW
@STREAM
def test_in_the_queue(server: LiveServer, how: str, stream: bool) -> None:
    with ExitStack() as held:
        inside = [held.enter_context(server.connect()) for _ in range(4)]
        for sock in inside:
            sock.sendall(post(COMPLETIONS, BODY))
        server.wait_for(lambda: server.service.counts()["seats_taken"] == 4)
        waiting = server.connect()
        waiting.sendall(post(COMPLETIONS, prompt(max_tokens=5000, stream=stream)))
        server.wait_for(lambda: server.service.waiting() == 1)
        accepted = server.engine()["requests_accepted"]
        leave(waiting, how)
        server.wait_for(lambda: server.service.waiting() == 0, SOON_S)
        assert server.engine()["requests_accepted"] == accepted, "the engine never heard of it"
        for sock in inside:
            leave(sock, how)
    assert is_gone_soon(server)


@HOW
@STREAM
def test_during_prefill(server: LiveServer, how: str, stream: bool) -> None:
    """Sixteen thousand tokens, 64 to a step of 10 ms."""
    before = server.engine()["generated_tokens"]
    sock = server.connect()
    sock.sendall(post(COMPLETIONS, prompt([1] * 16_000, max_tokens=100, stream=stream)))
    server.wait_for(lambda: server.engine()["requests_running"] == 1)
    leave(sock, how)
    assert is_gone_soon(server)
    assert server.engine()["generated_tokens"] == before


@HOW
@pytest.mark.parametrize("events", [1, 2, 3, 7, 20])
def test_after_some_events(server: LiveServer, how: str, events: int) -> None:
    sock = server.connect()
    sock.sendall(post("/v1/chat/completions", chat(max_tokens=5000, stream=True)))
    seen = b""
    while seen.count(b"data: ") < events:
        seen += sock.recv(256)
    leave(sock, how)
    assert is_gone_soon(server)


@HOW
def test_during_a_reply_that_is_not_streamed(server: LiveServer, how: str) -> None:
    sock = server.connect()
    sock.sendall(post("/v1/chat/completions", chat(max_tokens=5000)))
    before = server.engine()["generated_tokens"]
    server.wait_for(lambda: server.engine()["generated_tokens"] > before + 3)
    leave(sock, how)
    assert is_gone_soon(server)


@HOW
def test_with_several_choices_and_several_prompts(server: LiveServer, how: str) -> None:
    for body in (prompt(n=2, max_tokens=5000, stream=True), prompt(["a", "b", "c", "d", "e", "f"], max_tokens=5000)):
        sock = server.connect()
        sock.sendall(post(COMPLETIONS, body))
        server.wait_for(lambda: busy(server) > 0)
        leave(sock, how)
        assert is_gone_soon(server)


@HOW
def test_with_further_requests_sent_before_the_first_is_answered(server: LiveServer, how: str) -> None:
    """The one that runs is not the one that was read last."""
    sock = server.connect()
    sock.sendall(post(COMPLETIONS, BODY) * 3)
    server.wait_for(lambda: busy(server) == 1)
    leave(sock, how)
    assert is_gone_soon(server)


def test_leaving_is_noticed_while_a_body_arrives_behind(server: LiveServer) -> None:
    sock = server.connect()
    sock.sendall(post(COMPLETIONS, BODY) + head_of("POST", COMPLETIONS, content_length=10**6) + b" " * 200_000)
    server.wait_for(lambda: busy(server) == 1)
    leave(sock, "close")
    assert is_gone_soon(server)


def test_many_that_come_and_vanish_leave_nothing(server: LiveServer) -> None:
    rng = random.Random(3)
    request = post(COMPLETIONS, prompt(max_tokens=50, stream=True))
    for n in range(300):
        sock = server.connect()
        sock.sendall(request[: rng.randint(0, len(request))] if n % 3 else request)
        leave(sock, rng.choice(["close", "reset"]))
    server.wait_for(lambda: len(server.gate) == 0)
    server.wait_for(server.is_idle)
    assert server.post(COMPLETIONS, prompt(max_tokens=3)).json["usage"]["completion_tokens"] == 3


def test_those_who_stay_get_what_they_would_have_got(server: LiveServer) -> None:
    body = prompt("the one who stays", max_tokens=30, seed=5)
    alone = server.post(COMPLETIONS, body).json["choices"]
    with server.connect() as sock:
        sock.sendall(post(COMPLETIONS, body))
        for n in range(10):
            other = server.connect()
            other.sendall(post(COMPLETIONS, prompt(f"number {n}", max_tokens=500, stream=True)))
            leave(other, "reset" if n % 2 else "close")
        assert read_reply(sock).json["choices"] == alone
    assert is_gone_soon(server)
