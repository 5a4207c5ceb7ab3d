"""Large and hostile requests: the event loop is never held up, and memory is bounded."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from live_server import LiveServer, Reply, chat, head_of, post, prompt, read_reply

from kvik.server.run import SWITCH_S

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MIB = 2**20


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer("fake:length=3,max_model_len=4096") as running:
        yield running


def nested(depth: int) -> Any:
    value: Any = {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", "properties": {"a": value}}
    return value


def formatted(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


LARGE: dict[str, tuple[str, Any, int]] = {
    "10 MB of text": (COMPLETIONS, prompt("word " * (2 * MIB)), 400),
    "10 MB in one message": (CHAT, chat("word " * (2 * MIB)), 400),
    "as much text as is tokenized": (COMPLETIONS, prompt("a " * 60_000), 400),
    "2 million token ids": (COMPLETIONS, prompt([7] * 2 * MIB), 400),
    "4,096 messages": (CHAT, {"model": "fake", "messages": [{"role": "user", "content": "a"}] * 4096}, 400),
    "100,000 messages": (CHAT, {"model": "fake", "messages": [{"role": "user", "content": "a"}] * 100_000}, 400),
    "schema 100 deep": (CHAT, chat(**formatted(nested(100))), 400),
    "regex that would explode": (COMPLETIONS, prompt(guided_regex="(a+)+$"), 400),
    "regex of great counts": (COMPLETIONS, prompt(guided_regex=".{1,1000000000}"), 400),
    "300,000 biases": (COMPLETIONS, prompt(logit_bias={str(n): 1 for n in range(300_000)}), 400),
    "a model's name of 10 MB": (COMPLETIONS, prompt() | {"model": "m" * 10 * MIB}, 400),
    "1 MB stop string": (COMPLETIONS, prompt(stop=["s" * MIB]), 400),
}  # fmt: skip


class Watch:
    """Asks for the server's health all the time."""

    def __init__(self, server: LiveServer) -> None:
        self._server, self._stop = server, threading.Event()
        self.times: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._server.connect() as sock:
            while not self._stop.is_set():
                start = time.perf_counter()
                sock.sendall(head_of("GET", "/health"))
                assert read_reply(sock, "GET").status == 200
                self.times.append(time.perf_counter() - start)
                self._stop.wait(0.002)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("case", LARGE)
def test_what_is_large_is_refused_and_nobody_waits_for_it(server: LiveServer, case: str) -> None:
    path, body, status = LARGE[case]
    request = post(path, body)
    with Watch(server) as watch:
        replies = [server.send(request) for _ in range(3)]
    for reply in replies:
        assert reply.status == status, reply.error
        assert reply.error["type"] == "invalid_request_error"
        assert len(reply.body) <= 4096
    assert sorted(watch.times)[len(watch.times) // 2] < 0.2
    assert server.is_idle()


def test_short_texts_do_not_wait_for_long_ones(server: LiveServer) -> None:
    """Long texts are being tokenized all the time, in a thread of their own."""
    long = post("/tokenize", {"prompt": "some words " * 10_000})
    stop = threading.Event()

    def keep_busy() -> None:
        with server.connect() as sock:
            while not stop.is_set():
                sock.sendall(long)
                assert read_reply(sock).status == 200

    threads = [threading.Thread(target=keep_busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        assert server.post("/tokenize", {"prompt": "a few words"}).status == 200
        times.append(time.perf_counter() - start)
    stop.set()
    for thread in threads:
        thread.join()
    assert sorted(times)[10] < 0.25


def test_bodies_together_have_a_limit() -> None:
    body = json.dumps(prompt()).encode()
    with LiveServer("fake:length=3", max_body_bytes=MIB, max_body_memory=2 * MIB) as server, ExitStack() as held:
        for _ in range(2):
            sock = held.enter_context(server.connect())
            sock.sendall(head_of("POST", COMPLETIONS, content_type="application/json", content_length=MIB))
        server.wait_for(lambda: server.service.budget.used == 2 * MIB)
        reply: Reply = server.send(post(COMPLETIONS, body))
        assert (reply.status, reply.error["code"]) == (503, "overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        held.close()
        server.wait_for(lambda: server.service.budget.used == 0)
        assert server.send(post(COMPLETIONS, body)).status == 200


@pytest.mark.parametrize(
    "given",
    [
        {"response_format": {"type": "json_object"}},
        formatted({"type": "object", "properties": {"a": {"type": "integer"}}}),
        {"guided_regex": "[a-z]{3}"},
        {"guided_choice": ["yes", "no"]},
        {"guided_grammar": 'start: "a"'},
    ],
)
def test_every_kind_of_structure_becomes_a_grammar(server: LiveServer, given: dict[str, Any]) -> None:
    """What the fake model makes of it is not asked here."""
    seen: list[Any] = []
    submit = server.llm.submit

    def spy(token_ids: Any, params: Any, **rest: Any) -> Any:
        seen.append(params.grammar)
        return submit(token_ids, params, **rest)

    server.llm.submit = spy  # type: ignore[method-assign]
    try:
        server.post(CHAT, chat(max_tokens=3, **given))
    finally:
        server.llm.submit = submit  # type: ignore[method-assign]
    assert len(seen) == 1
    assert isinstance(seen[0], str)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (formatted({"type": "hiccup"}), "response_format.json_schema.schema"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_grammar": "nonsense"}, "guided_grammar"),
    ],
)
def test_a_structure_that_means_nothing_is_refused_by_its_name(server: LiveServer, given: Any, param: str) -> None:
    reply = server.post(CHAT, chat(**given))
    assert (reply.status, reply.error["param"]) == (400, param)


def test_the_event_loop_gets_its_turn_soon_while_the_server_runs() -> None:
    """Of the whole process, so it is given back."""
    before = sys.getswitchinterval()
    with LiveServer("fake:length=3") as running:
        assert running.get("/health").status == 200
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
    assert sys.getswitchinterval() == pytest.approx(before)


def test_what_a_library_says_of_a_grammar_is_for_whoever_debugs() -> None:
    with LiveServer("fake:length=3") as running:
        reply = running.post(COMPLETIONS, prompt(guided_grammar='start: "a" missing'))
        said = [line for line in running.lines if " request_failed " in line]
    assert (reply.status, reply.error["param"]) == (400, "guided_grammar")
    assert reply.error["message"].partition(" (line")[0] == "the grammar cannot be used"
    assert len(said) == 1
    assert " debug " in said[0]
    assert "the grammar cannot be used: " in said[0]
