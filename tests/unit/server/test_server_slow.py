"""Clients that are slow on purpose: each is cut at its limit, and nobody else notices."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from live_server import LiveServer, chat, head_of, is_closed, post, prompt, read_reply, rest_of

from kvik.server.generation import MAX_KEPT_BYTES

COMPLETIONS = "/v1/completions"
SHORT = 0.3
BODY = json.dumps(prompt()).encode()


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer(
        "fake:length=100000,max_model_len=200000",
        header_timeout=SHORT,
        body_timeout=SHORT,
        body_total_timeout=3 * SHORT,
        keep_alive=2 * SHORT,
        write_timeout=SHORT,
        max_connections=200,
    ) as running:
        yield running


def body_head(server: LiveServer) -> bytes:
    return head_of("POST", COMPLETIONS, content_type="application/json", content_length=len(BODY))


def since(start: float) -> float:
    return time.monotonic() - start


def test_half_a_head_is_answered_408(server: LiveServer) -> None:
    start = time.monotonic()
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: local")
        reply = read_reply(sock)
        assert reply.status == 408
        assert reply.error["type"] == "invalid_request_error"
        assert since(start) >= SHORT
        assert rest_of(sock) == b""


@pytest.mark.parametrize("drip", [b"X: y\r\n", b"a"])
def test_a_head_that_drips_is_cut_all_the_same(server: LiveServer, drip: bytes) -> None:
    """The limit is on the whole head, not on the pause between two bytes of it."""
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: ")
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while since(start) < 20 * SHORT:
                sock.sendall(drip)
                time.sleep(SHORT / 20)
    assert since(start) < 20 * SHORT


def test_a_connection_that_says_nothing_is_closed_without_a_word(server: LiveServer) -> None:
    with server.connect() as sock:
        assert rest_of(sock) == b""


def test_empty_lines_do_not_keep_a_connection(server: LiveServer) -> None:
    with server.connect() as sock:
        sock.sendall(b"\r\n")
        assert read_reply(sock).status == 408


def test_a_body_that_stops_is_answered_408(server: LiveServer) -> None:
    with server.connect() as sock:
        sock.sendall(body_head(server) + BODY[:-1])
        reply = read_reply(sock)
        assert reply.status == 408
        assert reply.error["code"] is None
        assert rest_of(sock) == b""
    server.wait_for(server.is_idle)


def test_a_body_that_drips_is_cut_by_its_whole_time(server: LiveServer) -> None:
    start = time.monotonic()
    with server.connect() as sock:
        sock.sendall(head_of("POST", COMPLETIONS, content_type="application/json", content_length=10_000))
        sent = 0
        sock.settimeout(SHORT / 3)
        while True:
            sock.sendall(b" ")
            sent += 1
            try:
                sock.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                assert since(start) < 30
        assert read_reply(sock).status == 408
    assert sent >= 3
    assert since(start) >= 3 * SHORT


def test_a_slow_body_within_the_limits_is_served(server: LiveServer) -> None:
    body = json.dumps(prompt(max_tokens=1)).encode()
    with server.connect() as sock:
        sock.sendall(head_of("POST", COMPLETIONS, content_type="application/json", content_length=len(body)))
        for place in range(0, len(body), 20):
            sock.sendall(body[place : place + 20])
            time.sleep(SHORT / 10)
        assert read_reply(sock).status == 200


def test_an_idle_connection_is_closed_after_a_while_and_not_before(server: LiveServer) -> None:
    with server.connect() as sock:
        sock.sendall(head_of("GET", "/health"))
        assert read_reply(sock, "GET").status == 200
        start = time.monotonic()
        assert is_closed(sock)
        assert since(start) >= 1.5 * SHORT


def test_half_a_head_behind_a_reply_is_cut_too(server: LiveServer) -> None:
    with server.connect() as sock:
        sock.sendall(head_of("GET", "/health") + b"GET /health HT")
        assert read_reply(sock, "GET").status == 200
        assert b"408" in rest_of(sock)


def stalled(server: LiveServer, stream: bool = True) -> socket.socket:
    """A client that asks for more than any buffer holds and does not read it."""
    sock = server.connect(receive_buffer=4096)
    sock.sendall(post(COMPLETIONS, prompt(max_tokens=100_000, stream=stream)))
    return sock


def test_a_client_that_does_not_read_is_cut_and_its_request_ended(server: LiveServer) -> None:
    with stalled(server) as sock:
        server.wait_for(lambda: server.service.meter._cut > 0)
        server.wait_for(server.is_idle)
        rest_of(sock)
    assert server.engine()["requests_ended"]["abort"] > 0


def test_what_is_kept_for_a_client_that_does_not_read_is_bounded(server: LiveServer) -> None:
    with stalled(server) as sock:
        server.wait_for(lambda: buffered(server) > 0)
        most = 0
        while kept := buffered(server):
            most = max(most, kept)
        assert most <= 256 * 1024
        rest_of(sock)
    server.wait_for(server.is_idle)


def buffered(server: LiveServer) -> int:
    """The most that is kept for any connection; looked up on the server's own thread."""

    async def look() -> int:
        connections = list(server.gate._working)
        return max((each.transport.get_write_buffer_size() for each in connections), default=0)  # type: ignore[attr-defined]

    return server.run(look())


def test_a_client_that_does_not_read_what_is_large_is_cut_before_it_is_much() -> None:
    """Log-probabilities are kilobytes for every token; the time limit for writing never comes here."""
    asked = chat(max_tokens=100_000, stream=True, logprobs=True, top_logprobs=20, ignore_eos=True)
    with LiveServer("fake:length=100000,step_ms=1,max_model_len=200000", write_timeout=3600.0) as server:
        with server.connect(receive_buffer=4096) as sock:
            sock.sendall(post("/v1/chat/completions", asked))
            server.wait_for(lambda: server.engine()["requests_running"] == 1)
            most = 0
            while server.engine()["requests_running"]:
                most = max(most, kept_for_readers(server))
            assert MAX_KEPT_BYTES / 2 < most < 8 * MAX_KEPT_BYTES
            assert server.engine()["blocks_used"] == 0
            assert buffered(server) <= 128 * 1024
            said = rest_of_stream(sock)
        assert said.endswith(b"0\r\n\r\n")
        assert b'"code":"client_too_slow"' in said
        server.wait_for(server.is_idle)


def kept_for_readers(server: LiveServer) -> int:
    """What has been computed and not taken, of all requests."""

    async def look() -> int:
        return sum(flight.kept_bytes for flight in server.llm._supervisor.desk._flights._flights.values())

    return server.run(look())


def rest_of_stream(sock: socket.socket) -> bytes:
    """Everything up to the last chunk of a reply."""
    data = b""
    while not data.endswith(b"0\r\n\r\n") and (piece := sock.recv(65536)):
        data += piece
    return data


def test_a_client_that_reads_slowly_but_steadily_gets_everything(server: LiveServer) -> None:
    """The time limit is for progress, not for the whole reply."""
    tokens = 2000
    pieces = [b""]
    with server.connect(receive_buffer=16384) as sock:
        sock.sendall(post(COMPLETIONS, prompt(max_tokens=tokens, stream=True, stream_options={"include_usage": True})))
        while not pieces[-1].endswith(b"0\r\n\r\n"):
            pieces.append(sock.recv(8192))
            time.sleep(SHORT / 30)
    assert b'"completion_tokens":%d' % tokens in b"".join(pieces)
    assert b"[DONE]" in b"".join(pieces)


def test_control_requests_stay_quick_among_slow_clients(server: LiveServer) -> None:
    """Half-sent heads, half-sent bodies and silent connections, all the time, as many as fit."""
    stop = threading.Event()

    def attack() -> None:
        pieces = (b"GET / HTTP/1.1\r\nX: ", body_head(server) + b"{", b"")
        while not stop.is_set():
            with ExitStack() as held:
                for n in range(60):
                    held.enter_context(server.connect()).sendall(pieces[n % 3])
                stop.wait(SHORT / 2)

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        times = []
        for _ in range(100):
            start = time.monotonic()
            assert server.get("/health").status == 200
            times.append(since(start))
    finally:
        stop.set()
        attacker.join()
    assert sorted(times)[50] < 0.1
    server.wait_for(lambda: len(server.gate) == 0)


def test_connections_beyond_the_limit_take_the_place_of_idle_ones(server: LiveServer) -> None:
    with ExitStack() as held:
        idle = [held.enter_context(server.connect()) for _ in range(250)]
        assert server.get("/health").status == 200
        assert is_closed(idle[0])
        assert len(server.gate) <= 200
    server.wait_for(lambda: len(server.gate) == 0)
