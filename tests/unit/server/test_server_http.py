"""What a client may put on the wire, row by row, and what it gets for it: never a 5xx, never a hang, never a crash."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import LiveServer, Reply, chunked, head_of, is_closed, post, prompt, read_reply, rest_of

COMPLETIONS = "/v1/completions"
LIMIT = 20_000


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer("fake:length=4", max_body_bytes=LIMIT, max_body_memory=10 * LIMIT) as running:
        yield running


def still_well(server: LiveServer) -> bool:
    return server.get("/health").status == 200 and server.post(COMPLETIONS, prompt()).status == 200


def padded(size: int) -> bytes:
    """A valid body of so many bytes."""
    body = json.dumps(prompt(user="")).encode()
    return body + b" " * (size - len(body))


def raw(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([line, *headers, b"", body])


HOST = b"Host: localhost"


def posted(*headers: bytes, body: bytes = b"") -> bytes:
    return raw(b"POST /v1/completions HTTP/1.1", HOST, *headers, body=body)


BROKEN: dict[str, tuple[bytes, int]] = {
    "http 0.9": (b"GET /health\r\n", 400),
    "http 0.9 with a header": (raw(b"GET /health", HOST), 400),
    "http 2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "http 1.2": (raw(b"GET /health HTTP/1.2", HOST), 400),
    "no such method": (raw(b"BREW /health HTTP/1.1", HOST), 400),
    "lower-case method": (raw(b"get /health HTTP/1.1", HOST), 400),
    "space in the path": (raw(b"GET /a b HTTP/1.1", HOST), 400),
    "raw bytes in the path": (raw("GET /\u00e9 HTTP/1.1".encode(), HOST), 400),
    "bare line feeds": (b"GET /health HTTP/1.1\nHost: localhost\n\n", 400),
    "folded header": (raw(b"GET /health HTTP/1.1", HOST, b"A: b", b" c"), 400),
    "space before the colon": (raw(b"GET /health HTTP/1.1", b"Host : localhost"), 400),
    "NUL in a header": (raw(b"GET /health HTTP/1.1", HOST, b"A: b\0c"), 400),
    "no host": (raw(b"GET /health HTTP/1.1"), 400),
    "two hosts": (raw(b"GET /health HTTP/1.1", HOST, b"Host: other"), 400),
    "host with a path": (raw(b"GET /health HTTP/1.1", b"Host: a/b?c"), 400),
    "host of somebody else": (raw(b"GET /health HTTP/1.1", b"Host: evil.example"), 400),
    "empty host": (raw(b"GET /health HTTP/1.1", b"Host:"), 400),
    "websocket": (raw(b"GET / HTTP/1.1", HOST, b"Connection: Upgrade", b"Upgrade: websocket"), 400),
    "connect": (raw(b"CONNECT localhost:443 HTTP/1.1", HOST), 405),
    "10,000 headers": (raw(b"GET / HTTP/1.1", HOST, *(b"A%d: b" % n for n in range(10_000))), 431),
    "101 headers": (raw(b"GET / HTTP/1.1", HOST, *(b"A%d: b" % n for n in range(100))), 431),
    "header of 64 KB": (raw(b"GET / HTTP/1.1", HOST, b"A: " + b"b" * 65536), 431),
    "many headers of 64 KB together": (raw(b"GET / HTTP/1.1", HOST, *[b"A: " + b"b" * 8000] * 8), 431),
    "url of 8 KB and more": (raw(b"GET /" + b"a" * 8192 + b" HTTP/1.1", HOST), 414),
    "url of 100 KB": (raw(b"GET /" + b"a" * 100_000 + b" HTTP/1.1", HOST), 414),
    "length and chunked": (
        posted(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        400,
    ),
    "chunked and length": (
        posted(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
        400,
    ),
    "two lengths": (
        posted(b"Content-Length: 5", b"Content-Length: 6", body=b"hello"),
        400,
    ),
    "negative length": (posted(b"Content-Length: -5"), 400),
    "length with a sign": (posted(b"Content-Length: +5"), 400),
    "length beyond 64 bits": (posted(b"Content-Length: " + b"9" * 30), 400),
    "coding that is not chunked": (
        posted(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
        400,
    ),
    "chunk size that is none": (
        posted(b"Content-Type: application/json", b"Transfer-Encoding: chunked", body=b"zz\r\n"),
        400,
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_http_is_told_so_and_closed(server: LiveServer, case: str) -> None:
    request, status = BROKEN[case]
    with server.connect() as sock:
        try:
            sock.sendall(request)
        except ConnectionError:
            pytest.fail("the connection was closed before the request was read")
        reply = read_reply(sock)
        assert reply.status == status
        assert reply.error["type"] == "invalid_request_error"
        if "host of" not in case and "host with" not in case and case != "empty host":
            assert reply.headers["connection"] == "close"
            assert rest_of(sock) == b""
    assert still_well(server)


def test_a_tls_hello_is_closed_without_a_word(server: LiveServer) -> None:
    before = len(server.lines)
    for _ in range(20):
        with server.connect() as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500)
            assert is_closed(sock)
    assert len(server.lines) == before


def test_broken_requests_write_no_log_line_each(server: LiveServer) -> None:
    before = len(server.lines)
    for _ in range(20):
        server.send(b"nonsense\r\n\r\n")
    assert len(server.lines) == before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", COMPLETIONS, 405),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/tokenize", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/health", 405),
        ("TRACE", "/health", 405),
        ("TRACE", COMPLETIONS, 405),
        ("OPTIONS", COMPLETIONS, 405),
        ("OPTIONS", "/v1/models", 405),
        ("OPTIONS", "*", 404),
        ("HEAD", COMPLETIONS, 405),
        ("HEAD", "/v1/models", 200),
        ("HEAD", "/v1/models/fake", 200),
        ("HEAD", "/health/ready", 200),
        ("HEAD", "/nowhere", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/models/no/such", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "http://localhost/health", 200),
        ("GET", "http://localhost", 400),
        ("GET", "/health?a=b#c", 200),
        ("GET", "//health", 404),
        ("GET", "/health/", 404),
    ],
)
def test_methods_and_paths(server: LiveServer, method: str, path: str, status: int) -> None:
    reply = server.get(path, method)
    assert reply.status == status
    if method == "HEAD":
        assert reply.body == b""
        assert int(reply.headers["content-length"]) > 0
    elif status >= 400:
        assert reply.error["type"] == "invalid_request_error"
    if status == 405:
        assert reply.headers["allow"] in ("POST", "GET, HEAD", "HEAD, GET")


def test_a_body_of_the_limit_is_taken_and_one_more_byte_is_not(server: LiveServer) -> None:
    assert server.send(post(COMPLETIONS, padded(LIMIT))).status == 200
    reply = server.send(post(COMPLETIONS, padded(LIMIT + 1)))
    assert (reply.status, reply.error["code"]) == (413, "content_too_large")


def test_a_body_in_chunks_has_the_same_limit(server: LiveServer) -> None:
    whole = padded(LIMIT)
    pieces = [whole[i : i + 999] for i in range(0, LIMIT, 999)]
    assert server.send(chunked(COMPLETIONS, *pieces)).status == 200
    assert server.send(chunked(COMPLETIONS, whole)).status == 200
    reply = server.send(chunked(COMPLETIONS, *pieces, b" "))
    assert (reply.status, reply.error["code"]) == (413, "content_too_large")


def test_a_body_that_goes_on_for_ever_is_answered_long_before(server: LiveServer) -> None:
    """The reply comes although the client is still sending, and is not lost when the connection closes."""
    with server.connect() as sock:
        sock.sendall(head_of("POST", COMPLETIONS, content_type="application/json", transfer_encoding="chunked"))
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        for _ in range(32):
            sock.sendall(chunk)
        reply = read_reply(sock)
        assert reply.status == 413
        assert reply.headers["connection"] == "close"
    assert still_well(server)


def test_a_large_length_is_refused_before_a_byte_of_it_is_sent(server: LiveServer) -> None:
    reply = server.send(head_of("POST", COMPLETIONS, content_type="application/json", content_length=10**15))
    assert reply.status == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"content_encoding": "gzip"},
        {"content_encoding": "zstd"},
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": "multipart/form-data; boundary=a"},
        {"content_type": None},
        {"content_type": ""},
    ],
)
def test_what_is_not_plain_json_is_415(server: LiveServer, headers: dict[str, Any]) -> None:
    reply = server.post(COMPLETIONS, prompt(), **headers)
    assert reply.status == 415
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/json ;x=y"])
def test_json_may_be_called_so_in_several_ways(server: LiveServer, kind: str) -> None:
    assert server.post(COMPLETIONS, prompt(), content_type=kind).status == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b'{"a":1e400}']
)
def test_a_body_that_is_no_json_object_is_400(server: LiveServer, body: bytes) -> None:
    reply = server.send(post(COMPLETIONS, body))
    assert reply.status == 400
    assert reply.error["param"] is None


def test_requests_in_a_row_on_one_connection(server: LiveServer) -> None:
    with server.connect() as sock:
        for n in range(5):
            sock.sendall(post(COMPLETIONS, prompt(f"number {n}")))
            assert read_reply(sock).status == 200


def test_small_replies_are_sent_at_once(server: LiveServer) -> None:
    """Head and body are two pieces; the second does not wait for word that the first has arrived, which takes 40 ms."""
    times = []
    with server.connect() as sock:
        for _ in range(21):
            start = time.perf_counter()
            sock.sendall(head_of("GET", "/health"))
            read_reply(sock, "GET")
            times.append(time.perf_counter() - start)
    assert sorted(times)[10] < 0.02


def test_pipelined_requests_are_answered_in_order(server: LiveServer) -> None:
    names = [f"request-{n}" for n in range(10)]
    with server.connect() as sock, sock.makefile("rb") as reader:
        sock.sendall(b"".join(post(COMPLETIONS, prompt(), x_request_id=name) for name in names))
        replies = [read_piped(reader) for _ in names]
    assert [reply.headers["x-request-id"] for reply in replies] == names
    assert {reply.status for reply in replies} == {200}


def read_piped(reader: Any) -> Reply:
    """One of several replies of known length."""
    status = int(reader.readline().split()[1])
    headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(reader.readline, b"\r\n"))
    return Reply(status, headers, reader.read(int(headers["content-length"])))


def test_too_many_pipelined_requests_end_the_connection(server: LiveServer) -> None:
    with server.connect() as sock:
        sock.sendall(post(COMPLETIONS, prompt()) * 200)
        data = rest_of(sock)
    assert data.count(b"HTTP/1.1 200 OK") == 1
    assert still_well(server)


def test_a_broken_request_behind_a_good_one_does_not_spoil_its_reply(server: LiveServer) -> None:
    with server.connect() as sock:
        sock.sendall(post(COMPLETIONS, prompt()) + b"nonsense\r\n\r\n")
        reply = read_reply(sock)
        assert reply.status == 200
        assert reply.json["object"] == "text_completion"
        assert rest_of(sock) == b""


def test_a_length_that_is_too_short_leaves_a_broken_second_request(server: LiveServer) -> None:
    body = json.dumps(prompt()).encode()
    reply = server.send(post(COMPLETIONS, body, content_length=len(body) - 5))
    assert reply.status == 400


def test_expect_continue_is_answered_before_the_body_comes(server: LiveServer) -> None:
    body = json.dumps(prompt()).encode()
    with server.connect() as sock:
        head = {"content_type": "application/json", "content_length": len(body), "expect": "100-continue"}
        sock.sendall(head_of("POST", COMPLETIONS, **head))
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_reply(sock).status == 200


def test_expect_continue_is_refused_without_the_body(server: LiveServer) -> None:
    head = {"content_type": "application/json", "content_length": LIMIT + 1, "expect": "100-continue"}
    assert server.send(head_of("POST", COMPLETIONS, **head)).status == 413


@pytest.mark.parametrize("method", ["GET", "POST", "chunks"])
def test_an_offer_of_http_2_is_ignored_and_the_body_read(server: LiveServer, method: str) -> None:
    """As the HTTP client of Java sends with every request."""
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAEAAEAAAAIAAAABAAMAAABk"}
    if method == "GET":
        request = head_of("GET", "/health", **offer)
    elif method == "POST":
        request = post(COMPLETIONS, prompt(), **offer)
    else:
        request = chunked(COMPLETIONS, json.dumps(prompt()).encode(), **offer)
    reply = server.send(request)
    assert reply.status == 200
    assert reply.headers["connection"] == "close"


def test_http_1_0_is_answered_and_closed(server: LiveServer) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert read_reply(sock).status == 200
        assert is_closed(sock)


def test_empty_lines_before_a_request_do_no_harm(server: LiveServer) -> None:
    assert server.send(b"\r\n\r\n" + head_of("GET", "/health")).status == 200


def test_trailers_are_ignored(server: LiveServer) -> None:
    request = chunked(COMPLETIONS, json.dumps(prompt()).encode())
    assert server.send(request[:-2] + b"Authorization: x\r\n\r\n").status == 200


def test_a_head_that_comes_byte_by_byte_is_a_head(server: LiveServer) -> None:
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head_of("GET", "/health"):
            sock.sendall(bytes([byte]))
        assert read_reply(sock).status == 200


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-123", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("a\x7fb", False)]
)
def test_every_reply_has_a_request_id(server: LiveServer, given: str, kept: bool) -> None:
    reply = server.get("/health", x_request_id=given)
    assert (reply.headers.get("x-request-id") == given) == kept
    for other in (server.get("/nowhere"), server.post(COMPLETIONS, b"{"), server.send(b"nonsense\r\n\r\n")):
        assert other.headers["x-request-id"].startswith("req-")


def test_replies_are_dated(server: LiveServer) -> None:
    assert server.get("/health").headers["date"].endswith("GMT")
