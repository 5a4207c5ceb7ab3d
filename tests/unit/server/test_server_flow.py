"""Overload, deadlines, failures and the end of the server: every request is told what became of it."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from live_server import LiveServer, Reply, chat, head_of, post, prompt, read_reply, rest_of

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
STEP_MS = 10
SLOW = f"fake:length=100000,step_ms={STEP_MS},max_model_len=20000"
ONE_SEAT = {"max_num_seqs": 1, "max_num_batched_tokens": 64}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """One seat and two in reserve; keys, of which each may have so many requests."""
    with LiveServer(
        SLOW,
        ONE_SEAT,
        api_key=("first-key", "second-key"),
        max_concurrent=8,
        max_queued_requests=6,
        request_timeout=20.0,
    ) as running:
        yield running


@pytest.fixture
def live() -> Iterator[LiveServer]:
    """A server of a test's own."""
    with LiveServer(SLOW) as running:
        yield running


def first(path: str, body: Any, **headers: Any) -> bytes:
    return post(path, body, authorization="Bearer first-key", **headers)


def second(path: str, body: Any, **headers: Any) -> bytes:
    return post(path, body, authorization="Bearer second-key", **headers)


def hold(server: LiveServer, held: ExitStack, count: int, **fields: Any) -> None:
    """Long requests of the first key, that many."""
    before = server.service.counts()["requests_open"]
    for _ in range(count):
        held.enter_context(server.connect()).sendall(first(COMPLETIONS, prompt(max_tokens=10_000, **fields)))
    server.wait_for(lambda: server.service.counts()["requests_open"] == before + count)
    server.wait_for(lambda: server.service.waiting() + server.service.counts()["seats_taken"] >= count)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        running = request.getfixturevalue("server")
        running.wait_for(running.is_idle)


def test_a_callers_limit_is_429_and_others_go_on(server: LiveServer) -> None:
    with ExitStack() as held:
        hold(server, held, 8)
        start = time.monotonic()
        reply = server.send(first(COMPLETIONS, prompt()))
        assert time.monotonic() - start < 1.0
        assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
        assert int(reply.headers["retry-after"]) >= 1
        assert server.send(head_of("GET", "/v1/models", authorization="Bearer first-key"), "GET").status == 200
        waiting = held.enter_context(server.connect())
        waiting.sendall(second(COMPLETIONS, prompt(max_tokens=1)))
        server.wait_for(lambda: server.service.waiting() == 6)


def test_a_full_queue_gives_a_place_to_another_caller(server: LiveServer) -> None:
    with ExitStack() as held:
        hold(server, held, 3)
        flood = [held.enter_context(server.connect()) for _ in range(5)]
        for sock in flood:
            sock.sendall(first(COMPLETIONS, prompt(max_tokens=1000)))
        server.wait_for(lambda: server.service.waiting() == 5)
        held.enter_context(server.connect()).sendall(second(COMPLETIONS, prompt(max_tokens=1000)))
        server.wait_for(lambda: server.service.waiting() == 6)
        held.enter_context(server.connect()).sendall(second(COMPLETIONS, prompt(max_tokens=1000)))
        answered, _, _ = select.select(flood, [], [], 30)
        assert len(answered) == 1
        reply = read_reply(answered[0])
        assert (reply.status, reply.error["code"]) == (503, "overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        assert server.service.waiting() == 6


def test_one_caller_does_not_wait_for_all_of_anothers(server: LiveServer) -> None:
    """Three of the first key are inside, five wait; the second key's is next."""
    with ExitStack() as held:
        running = [held.enter_context(server.connect()) for _ in range(8)]
        for sock in running:
            sock.sendall(first(COMPLETIONS, prompt(max_tokens=40)))
        server.wait_for(lambda: server.service.waiting() == 5)
        done: list[str] = []

        def read(sock: Any, name: str) -> None:
            assert read_reply(sock).status == 200
            done.append(name)

        single = held.enter_context(server.connect())
        single.sendall(second(COMPLETIONS, prompt(max_tokens=40)))
        threads = [threading.Thread(target=read, args=(sock, "first")) for sock in running]
        threads.append(threading.Thread(target=read, args=(single, "second")))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert done.index("second") <= 4


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_in_the_queue_is_504(server: LiveServer, stream: bool) -> None:
    with ExitStack() as held:
        hold(server, held, 3)
        reply = server.send(first(COMPLETIONS, prompt(stream=stream), x_request_timeout=0.2))
        assert (reply.status, reply.error["code"]) == (504, "deadline_exceeded")
        assert server.service.waiting() == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_before_the_first_token_is_504(server: LiveServer, stream: bool) -> None:
    """A prompt of 100 steps."""
    reply = server.send(first(COMPLETIONS, prompt([1] * 6400, stream=stream), x_request_timeout=0.3))
    assert (reply.status, reply.error["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 50])
def test_a_deadline_in_the_step_that_brings_the_first_token_is_504(stream: bool, max_tokens: int) -> None:
    """The step takes longer than there is, so the token is there and comes too late."""
    with LiveServer("fake:step_ms=300") as live:
        body = prompt(stream=stream, max_tokens=max_tokens, ignore_eos=True)
        reply = live.post(COMPLETIONS, body, x_request_timeout=0.1)
        assert (reply.status, reply.error["code"]) == (504, "deadline_exceeded")
        live.wait_for(live.is_idle)


def test_a_deadline_that_finds_one_of_two_prompts_without_a_token_gives_the_others() -> None:
    """The second one takes hundreds of steps; what the call has got of the first is its answer."""
    with LiveServer(SLOW, {"max_num_batched_tokens": 64}) as live:
        reply = live.post(COMPLETIONS, prompt(["a", "a" * 19_000], max_tokens=900), x_request_timeout=0.5)
        assert reply.status == 200
        first, second = reply.json["choices"]
        assert {(c["finish_reason"], c["stop_reason"]) for c in (first, second)} == {("length", "deadline")}
        assert first["text"]
        assert second["text"] == ""


def test_a_deadline_later_ends_the_answer_with_what_there_is(server: LiveServer) -> None:
    start = time.monotonic()
    reply = server.send(first(CHAT, chat(max_tokens=10_000), x_request_timeout=0.5))
    assert time.monotonic() - start < 5
    (choice,) = reply.json["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")
    assert choice["message"]["content"]
    events = server.send(first(CHAT, chat(max_tokens=10_000, stream=True), x_request_timeout=0.5)).events
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "1e9", ""])
def test_a_deadline_that_is_none_is_400(server: LiveServer, value: str) -> None:
    assert server.send(first(COMPLETIONS, prompt(), x_request_timeout=value)).status == 400


def test_a_failure_before_the_first_token_has_a_status(server: LiveServer) -> None:
    for fault, status, code in (("[[raise]]", 500, None), ("[[nan]]", 500, "numerical_error")):
        for stream in (False, True):
            reply = server.send(first(COMPLETIONS, prompt(fault, stream=stream)))
            assert (reply.status, reply.error["code"]) == (status, code)


def test_a_failure_in_the_middle_is_the_last_event(server: LiveServer) -> None:
    reply = server.send(first(CHAT, chat("[[raise@5]]", max_tokens=50, stream=True)))
    assert reply.status == 200
    *events, last = reply.events
    assert set(last) == {"error"}
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert all(event["choices"][0]["finish_reason"] is None for event in events)
    whole = server.send(first(CHAT, chat("[[raise@5]]", max_tokens=50)))
    assert whole.status == 500


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat("too " * 20_000)), (COMPLETIONS, prompt("too " * 20_000))])
def test_what_can_never_fit_is_400_at_once(server: LiveServer, path: str, body: Any) -> None:
    reply = server.send(first(path, body))
    assert reply.status == 400
    assert reply.error["code"] == "context_length_exceeded"
    length = server.service.known().info.max_model_len
    assert reply.error["message"].startswith(f"This model's maximum context length is {length} tokens")
    assert reply.error["param"] == ("messages" if path == CHAT else "prompt")


def test_what_can_never_fit_does_not_wait_for_its_turn(server: LiveServer) -> None:
    with ExitStack() as held:
        hold(server, held, 4)
        start = time.monotonic()
        reply = server.send(first(COMPLETIONS, prompt([1] * 20_000)))
        assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
        reply = server.send(first(COMPLETIONS, prompt("a" * 20_000)))
        assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
        assert time.monotonic() - start < 5
        assert server.service.waiting() == 1


def test_several_prompts_are_answered_together(server: LiveServer) -> None:
    texts = ["a", "bb", "ccc", "dddd", "eeeee"]
    body = prompt(texts, max_tokens=5, seed=1)
    reply = server.send(first(COMPLETIONS, body)).json
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3, 4]
    assert reply["usage"]["completion_tokens"] == 25
    alone = server.send(first(COMPLETIONS, prompt("ccc", max_tokens=5, seed=1))).json
    assert reply["choices"][2]["text"] == alone["choices"][0]["text"]
    events = server.send(first(COMPLETIONS, {**body, "stream": True})).events
    streamed = "".join(event["choices"][0]["text"] for event in events[:-1] if event["choices"][0]["index"] == 2)
    assert streamed == alone["choices"][0]["text"]


def test_one_of_several_prompts_that_fails_fails_the_call(server: LiveServer) -> None:
    reply = server.send(first(COMPLETIONS, prompt(["[[raise]]", "b", "c"], max_tokens=5000)))
    assert reply.status == 500


def test_a_stream_and_a_whole_reply_say_the_same(server: LiveServer) -> None:
    body = chat(max_tokens=30, seed=9)
    whole = server.send(first(CHAT, body)).json["choices"][0]
    events = server.send(first(CHAT, {**body, "stream": True, "stream_options": {"include_usage": True}})).events
    deltas = [event["choices"][0]["delta"] for event in events[:-2]]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["message"]["content"]
    assert events[-2]["usage"]["completion_tokens"] == 30


def test_tokenize_and_detokenize(server: LiveServer) -> None:
    reply = server.send(first("/tokenize", {"prompt": "hello", "return_token_strs": True})).json
    assert reply == {"count": 5, "max_model_len": 20000, "tokens": list(b"hello"), "token_strs": list("hello")}
    assert server.send(first("/detokenize", {"tokens": list(b"hello")})).json == {"prompt": "hello"}
    assert server.send(first("/detokenize", {"tokens": [10**6]})).status == 400
    assert server.send(first("/tokenize", {"model": "other", "prompt": "a"})).status == 404


@pytest.mark.parametrize("model", ["other", "../../etc/passwd", "a\0b", "fake/", "FAKE"])
def test_a_model_is_looked_up_by_name_only(server: LiveServer, model: str) -> None:
    reply = server.send(first(COMPLETIONS, prompt() | {"model": model}))
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


# The end


def test_draining_lets_requests_finish_and_takes_no_new_ones(live: LiveServer) -> None:
    with live.connect() as running, live.connect() as idle:
        idle.sendall(head_of("GET", "/health"))
        assert read_reply(idle, "GET").status == 200
        running.sendall(post(CHAT, chat(max_tokens=15, stream=True)))
        live.wait_for(lambda: live.engine()["requests_running"] == 1)
        live.stop()
        live.wait_for(lambda: live.service.draining)
        ready = live.get("/health/ready")
        assert (ready.status, ready.json["status"]) == (503, "draining")
        refused = live.post(COMPLETIONS, prompt())
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert live.get("/health/live").status == 200
        events = read_reply(running).events
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("twice", [False, True])
def test_what_does_not_finish_in_time_is_told_so(live: LiveServer, twice: bool) -> None:
    with live.connect() as streaming, live.connect() as whole:
        streaming.sendall(post(CHAT, chat(max_tokens=10_000, stream=True)))
        whole.sendall(post(CHAT, chat(max_tokens=10_000)))
        live.wait_for(lambda: live.engine()["requests_running"] == 2)
        start = time.monotonic()
        live.stop()
        if twice:
            live.stop()
        events = read_reply(streaming).events
        reply = read_reply(whole)
    assert events[-1]["error"]["code"] == "aborted"
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])
    assert (reply.status, reply.error["code"]) == (503, "aborted")
    assert int(reply.headers["retry-after"]) >= 1
    assert time.monotonic() - start < (0.5 if twice else 2.0) + 2.0


def test_queued_requests_are_told_so_too() -> None:
    with LiveServer(SLOW, ONE_SEAT) as live, ExitStack() as held:
        socks = [held.enter_context(live.connect()) for _ in range(8)]
        for sock in socks:
            sock.sendall(post(COMPLETIONS, prompt(max_tokens=10_000)))
        live.wait_for(lambda: live.service.waiting() == 5)
        live.stop()
        replies: list[Reply] = [read_reply(sock) for sock in socks]
        assert {reply.status for reply in replies} == {503}


def test_streams_without_an_end_do_not_hold_up_the_end(live: LiveServer) -> None:
    with live.connect() as watching:
        watching.sendall(head_of("GET", "/events"))
        assert watching.recv(15) == b"HTTP/1.1 200 OK"
        start = time.monotonic()
        live.stop()
        assert rest_of(watching).endswith(b"0\r\n\r\n")
    assert time.monotonic() - start < 3.0


def test_an_idle_server_ends_at_once() -> None:
    with LiveServer() as live, live.connect() as idle:
        start = time.monotonic()
        live.stop()
        assert rest_of(idle) == b""
    assert time.monotonic() - start < 3.0


def test_metrics_count_what_was_turned_away(server: LiveServer) -> None:
    page = server.get("/metrics", authorization="Bearer first-key").body.decode()
    assert 'kvik_http_requests_rejected_total{reason="caller_full"}' in page
    assert "kvik_ready 1.0" in page
    stats = server.get("/stats", authorization="Bearer first-key").json
    assert stats["server"]["requests_queued"] == 0
    assert stats["health"]["state"] == "ready"
