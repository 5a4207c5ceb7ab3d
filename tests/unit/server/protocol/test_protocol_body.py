"""What is no request is refused before it costs anything, and every refusal has the one form."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvik.engine.remote.frames import Failed
from kvik.errors import (
    ContextLengthError,
    EngineError,
    InvalidRequestError,
    NumericalError,
    OverloadedError,
    TemplateError,
)
from kvik.server.protocol.decode import MAX_DEPTH, decode_body
from kvik.server.protocol.errors import ApiError, bad_request, from_exception, from_failed, shown, unknown_model


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b" \n", "not valid JSON"),
        (b"{", "ends too early"),
        (b"[]", "a JSON list"),
        (b"null", "a JSON null"),
        (b'"x"', "a JSON string"),
        (b"7", "a JSON number"),
        (b"true", "a JSON boolean"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ('{"a":1}'.encode("utf-16"), "UTF-16"),
        ('{"a":1}'.encode("utf-16-le"), "not valid JSON at byte 1"),
        (b'{"a":"\xe9"}', "not UTF-8"),
        (b'{"\xff":1}', "not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        (rb'{"a":"\ud800"}', "not valid JSON"),
        (rb'{"a":"\udc00 x"}', "not valid JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than"),
        (nested(MAX_DEPTH + 1), "nested more than"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nested more than"),
        (b'{"a":' + b"9" * 5000 + b"}", "out of range"),
        (b'{"a":1e400}', "out of range"),
        (b'{"a":NaN}', "not valid JSON at byte 5"),
        (b'{"a":-Infinity}', "not valid JSON"),
        (b'{"a":1} x', "not valid JSON"),
        (b"{'a':1}", "not valid JSON"),
        (b'{"a":[' + b"[]," * 200_000 + b"[]]}", "lists and objects"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(ApiError, match=said) as caught:
        decode_body(body)
    assert (caught.value.status, caught.value.type, caught.value.param) == (400, "invalid_request_error", None)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b" {}\n", {}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (rb'{"a":"x\u0000y"}', {"a": "x\0y"}),
        (rb'{"a":"\ud83d\ude00"}', {"a": "😀"}),
        (b'{"a":18446744073709551616}', {"a": 2**64}),
        (b'{"a":1e-999}', {"a": 0.0}),
        (nested(MAX_DEPTH), json.loads(nested(MAX_DEPTH))),
    ],
)
def test_odd_but_valid_bodies_are_read(body: bytes, value: object) -> None:
    assert decode_body(body) == value


def test_brackets_in_text_are_not_counted() -> None:
    text = "[{" * 200_000 + '"\\' * 3
    assert decode_body(json.dumps({"prompt": text, "a": [1]}).encode()) == {"prompt": text, "a": [1]}


@pytest.mark.parametrize("unit", [b'"[', b'\\"[{', b'"\\"[{', b"\\\\[", b'["a",', b"[{"])
def test_long_rubbish_is_refused_quickly(unit: bytes) -> None:
    started = time.process_time()
    with pytest.raises(ApiError):
        decode_body(b'{"a":' + unit * 500_000)
    assert time.process_time() - started < 2


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists))
def test_whatever_another_encoder_writes_is_read(value: object) -> None:
    assert decode_body(json.dumps({"a": value}).encode()) == {"a": value}


def is_refused(body: bytes) -> bool:
    try:
        value: object = decode_body(body)
    except ApiError:
        return True
    assert isinstance(value, dict)
    return False


def is_no_json_object(body: bytes) -> bool:
    try:
        return not isinstance(json.loads(body.decode()), dict)
    except (ValueError, RecursionError):
        return True


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]":,0e-.tnul \\', max_size=20).map(str.encode))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for each in (body, b'{"a":' + body + b"}"):
        assert is_refused(each) or not is_no_json_object(each)


NASTY = "\r\nSet-Cookie: x\x1b[31m\0\u2028" + '"\\😀' * 5000


@pytest.mark.parametrize(
    "error",
    [
        bad_request(NASTY, NASTY),
        unknown_model(NASTY),
        bad_request("x"),
        from_exception(InvalidRequestError(NASTY, param="prompt")),
        from_failed(Failed("r", "TemplateError", NASTY)),
        ApiError(401, "invalid_request_error", "invalid_api_key", "no"),
    ],
)
def test_every_error_body_has_four_keys_and_is_small_and_plain(error: ApiError) -> None:
    body = error.body()
    assert len(body) <= 4096
    assert json.loads(body).keys() == {"error"}
    said = json.loads(body)["error"]
    assert said.keys() == {"message", "type", "param", "code"}
    assert said["message"].isprintable()
    assert said["message"]
    assert all(value is None or isinstance(value, str) for value in said.values())


@settings(deadline=None)
@given(st.text() | st.integers() | st.floats() | st.none() | st.booleans() | st.lists(st.integers()))
def test_at_most_sixty_characters_are_quoted(value: object) -> None:
    assert len(shown(value)) <= 62
    assert shown(value).isprintable()


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (InvalidRequestError("x", param="stop"), 400, None, "stop"),
        (InvalidRequestError("x", param="prompt"), 400, None, "messages"),
        (ContextLengthError("x", param="prompt"), 400, "context_length_exceeded", "messages"),
        (ContextLengthError("x"), 400, "context_length_exceeded", "messages"),
        (TemplateError("x"), 400, None, "messages"),
        (OverloadedError("x"), 503, "overloaded", None),
        (EngineError("x"), 500, None, None),
        (NumericalError("x"), 500, "numerical_error", None),
        (KeyError("secret"), 500, None, None),
    ],
)
def test_exceptions_of_the_engine_become_errors_of_the_api(
    error: Exception, status: int, code: str | None, param: str | None
) -> None:
    failed = Failed("r", type(error).__name__, str(error), getattr(error, "param", None))
    names = {"prompt": "messages"}
    for made in (from_exception(error, names), from_failed(failed, names)):
        assert (made.status, made.code, made.param) == (status, code, param)
        assert made.type == ("invalid_request_error" if status == 400 else "server_error")
        assert "secret" not in made.message


@pytest.mark.parametrize("kind", [EngineError, NumericalError])
def test_what_an_engine_says_of_itself_is_for_the_log_and_not_for_the_client(kind: type[Exception]) -> None:
    secret = "RuntimeError: the secret of /home/somebody"
    for made in (from_exception(kind(secret)), from_failed(Failed("r", kind.__name__, secret))):
        assert b"secret" not in made.body()
        assert made.message == from_exception(kind("")).message
        assert made.detail == secret
    assert from_exception(InvalidRequestError("stop is 5", param="stop")).message == "stop is 5"
    assert from_exception(InvalidRequestError("stop is 5", param="stop")).detail is None


def test_headers_say_when_to_try_again() -> None:
    assert from_exception(OverloadedError("x", retry_after_s=2.1)).headers() == {"retry-after": "3"}
    assert from_exception(OverloadedError("x", retry_after_s=0.01)).headers() == {"retry-after": "1"}
    assert from_exception(NumericalError("x")).headers() == {"x-should-retry": "false"}
    assert from_exception(EngineError("x")).headers() == {}


def test_an_error_of_the_api_stays_itself() -> None:
    error = bad_request("x", "stop")
    assert from_exception(error) is error
