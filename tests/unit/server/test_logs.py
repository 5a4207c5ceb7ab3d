"""Log lines: one a line, printable, without a word of any prompt, and never in anybody's way."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator

import pytest
from fakes import FakeClock
from live_server import LiveServer, chat, head_of, post, prompt, read_reply

from kvik.server.logs import MAX_WAITING, Forward, Log, line, own_words, shown, where
from kvik.server.protocol.errors import ENGINE_FAILED

SECRET = "xyzzy-plugh-prompt-text"
NASTY = "a\r\nb\x1b[31m\x00\x7f\u202e\u2028\"\\ '="


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer("fake:length=6", log_level="info") as running:
        yield running


@pytest.mark.parametrize("value", [NASTY, NASTY * 50, "", " ", "a=b", "\ud800", "日本"])
def test_a_value_is_printable_ascii_and_ends_where_it_seems_to(value: str) -> None:
    text = shown(value)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 1500
    assert text.startswith('"')
    assert text.endswith('"')
    assert '"' not in text[1:-1].replace('\\"', "").replace("\\\\", "")


def test_plain_values_are_plain() -> None:
    assert [shown(value) for value in ("abc-1:2/3", 5, 0.25, True, 1e-7)] == ["abc-1:2/3", "5", "0.25", "True", "1e-07"]


def test_a_line_has_time_level_event_and_fields() -> None:
    assert line(0.25, "info", "ready", {"a": 1, "b": None}) == "1970-01-01T00:00:00.250Z info ready a=1"


def test_an_error_is_where_it_was_raised_without_its_message() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        text = where(error)
    assert text.startswith("KeyError at test_logs.py:")
    assert SECRET not in text


def test_lower_levels_are_left_out() -> None:
    stream = io.StringIO()
    log = Log(stream, "warning")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    log.close()
    assert [each.split()[1:] for each in stream.getvalue().splitlines()] == [["warning", "c"], ["error", "d"]]


class Stuck(io.StringIO):
    """A pipe that nobody reads, until somebody does."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, text: str) -> int:
        self.free.wait(30)
        return super().write(text)


def test_a_pipe_that_nobody_reads_costs_lines_and_nothing_else() -> None:
    stream = Stuck()
    log = Log(stream)
    for n in range(MAX_WAITING + 500):
        log.info("event", n=n)
    assert log.dropped >= 499
    stream.free.set()
    log.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) <= MAX_WAITING + 2
    assert f"log_lines_lost lines={log.dropped}" in stream.getvalue()


def test_a_full_disk_does_no_harm() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    log = Log(Full())
    log.info("a")
    log.info("b")
    log.close()
    assert log.dropped == 2


def record(name: str, message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "file.py", 1, message, args, None)


def test_libraries_say_little_and_quote_nothing() -> None:
    stream, clock = io.StringIO(), FakeClock()
    log = Log(stream)
    forward = Forward(log, clock)
    for _ in range(100):
        forward.emit(record("uvicorn.error", "bad request: %s\nmore", SECRET))
    clock.now += 1
    forward.emit(record("kvik.engine", "the engine was lost (%s)", "it hung"))
    log.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert SECRET not in stream.getvalue()
    assert "the engine was lost (it hung)" in lines[1]


def test_no_prompt_and_no_answer_is_in_the_log(server: LiveServer) -> None:
    bodies = [
        ("/v1/completions", prompt(SECRET)),
        ("/v1/completions", prompt(SECRET, stream=True)),
        ("/v1/completions", prompt(SECRET, temperature=SECRET)),
        ("/v1/completions", prompt(SECRET, user=SECRET, stop=[SECRET])),
        ("/v1/completions", {"model": SECRET, "prompt": "a"}),
        ("/v1/chat/completions", chat(SECRET)),
        ("/v1/chat/completions", chat(SECRET, response_format={"type": SECRET})),
        ("/tokenize", prompt(SECRET)),
        ("/v1/completions", prompt("[[raise]]" + SECRET)),
        ("/v1/completions", b'{"model": "' + SECRET.encode()),
    ]
    answers = []
    for path, body in bodies:
        reply = server.send(post(path, body))
        if reply.status == 200 and path == "/v1/completions" and "stream" not in body:
            answers.append(reply.json["choices"][0]["text"])
    text = "\n".join(server.lines)
    assert SECRET not in text
    assert answers
    assert not [answer for answer in answers if answer.strip() in text]


def test_of_what_others_raise_only_the_kind_is_logged() -> None:
    assert own_words("the engine was lost with this request: it hung") == (
        "the engine was lost with this request: it hung"
    )
    assert own_words("req-1.2.0: the model produced NaN") == "req-1.2.0: the model produced NaN"
    assert own_words(f"RuntimeError: {SECRET}: and more") == "RuntimeError"


@pytest.mark.parametrize("stream", [False, True])
def test_why_an_answer_failed_is_in_the_log_and_not_in_the_reply(server: LiveServer, stream: bool) -> None:
    before = len(server.lines)
    body = prompt("[[raise@3]]", stream=stream, ignore_eos=True, min_tokens=9, max_tokens=9)
    reply = server.send(post("/v1/completions", body, x_request_id="why"))
    assert reply.status == (200 if stream else 500)
    told = reply.events[-1]["error"] if stream else reply.error
    assert told["message"] == ENGINE_FAILED
    assert b"raise@3" not in reply.body
    assert b"RuntimeError" not in reply.body
    first, last = server.lines[before:]
    assert first.split()[1:] == ["error", "request_failed", "id=why", "reason=RuntimeError"]
    assert "request id=why" in last
    assert "raise@3" not in first + last


def test_all_that_was_raised_is_logged_for_who_debugs() -> None:
    with LiveServer("fake:length=6", log_level="debug") as server:
        server.send(post("/v1/completions", prompt("[[raise]]"), x_request_id="why"))
        _, detail, _ = (each for each in server.lines if "id=why" in each)
    assert "debug request_failed id=why detail=" in detail
    assert "says [[raise]]" in detail


def test_nothing_a_client_sends_makes_a_second_line(server: LiveServer) -> None:
    before = len(server.lines)
    path = "/v1/models/%0d%0a2026-01-01%20info%20forged%1b%5b31m%00"
    assert server.get(path).status == 404
    assert server.get("/%0a%0aforged").status == 404
    unknown = prompt("a", **{f"x\n{NASTY}": 1})
    with server.connect() as sock:
        sock.sendall(post("/v1/completions", unknown, x_request_id="a b\tc"))
        assert read_reply(sock).status == 200
    new = server.lines[before:]
    assert len(new) == 3
    for each in new:
        assert each.isprintable()
        assert each.isascii()
        assert each.split()[2] == "request"


def test_every_request_has_one_line_that_says_what_became_of_it(server: LiveServer) -> None:
    before = len(server.lines)
    server.send(post("/v1/completions", prompt(max_tokens=3), x_request_id="my-id-1"))
    server.send(head_of("GET", "/v1/completions", x_request_id="my-id-2"), "GET")
    first, second = server.lines[before:]
    for part in ("id=my-id-1", "caller=127.0.0.1", "path=/v1/completions", "status=200", "tokens=3", "prompt_tokens=5"):
        assert part in first.split()
    assert {"id=my-id-2", "status=405", "method=GET"} <= set(second.split())


def test_health_checks_do_not_fill_the_log(server: LiveServer) -> None:
    before = len(server.lines)
    for path in ("/health", "/health/live", "/health/ready", "/metrics"):
        assert server.get(path).status == 200
    server.send(post("/v1/completions", prompt()))
    assert len(server.lines) == before + 1
