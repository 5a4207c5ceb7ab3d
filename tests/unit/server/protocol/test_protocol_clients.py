"""The official Python client reads our bytes: replies, streams with tools, and errors as its own exceptions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from protocol_toys import EOS, HEAD, HELLO, chat, reading, token_bytes, update

from kvik.errors import ContextLengthError, NumericalError, OverloadedError
from kvik.server.protocol.chat import ChatCall, read_chat
from kvik.server.protocol.chat_reply import ChatReply
from kvik.server.protocol.chat_stream import ChatStream
from kvik.server.protocol.decode import decode_body
from kvik.server.protocol.errors import ApiError, bad_request, deadline_exceeded, from_exception, unknown_model
from kvik.server.protocol.terms import Terms

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

TEXT = 'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"city": "Århus"}}\n</tool_call>'
UPDATES = [*map(update, TEXT), update("", [EOS], finish_reason="stop", stop_reason=EOS)]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def answer(call: ChatCall) -> bytes:
    if not call.stream:
        reply = ChatReply(HEAD, call, 5, token_bytes, reading())
        for each in UPDATES:
            reply.push(each)
        return reply.body()
    stream = ChatStream(HEAD, call, 5, token_bytes, reading())
    return b"".join(map(stream.push, UPDATES)) + stream.end()


def serve(request: Any) -> Any:
    """What a server would do, without one."""
    try:
        call = read_chat(decode_body(request.read()), Terms())
        kind = "text/event-stream" if call.stream else "application/json"
        return httpx.Response(200, content=answer(call), headers={"content-type": kind})
    except ApiError as error:
        return httpx.Response(error.status, content=error.body(), headers=error.headers())


def client(handler: Any = serve) -> Any:
    transport = httpx.Client(transport=httpx.MockTransport(handler))
    return openai.OpenAI(api_key="x", base_url="http://test/v1", max_retries=0, http_client=transport)


def test_a_whole_reply_with_a_call() -> None:
    reply = client().chat.completions.create(model="toy", messages=HELLO, tools=TOOLS)
    [choice] = reply.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Århus"}
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (5, 6 + len(TEXT.encode()))


def test_the_clients_own_accumulation_of_a_stream_is_the_whole_reply() -> None:
    with client().chat.completions.stream(
        model="toy", messages=HELLO, tools=TOOLS, stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    whole = client().chat.completions.create(model="toy", messages=HELLO, tools=TOOLS)
    assert "tool_calls.function.arguments.done" in kinds
    assert final.choices[0].message.content == whole.choices[0].message.content
    got, expected = final.choices[0].message.tool_calls[0], whole.choices[0].message.tool_calls[0]
    assert (got.id, got.function.name, got.function.arguments) == (
        *(expected.id, expected.function.name),
        expected.function.arguments,
    )
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert final.usage == whole.usage


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (bad_request("no", "stop"), "BadRequestError"),
        (from_exception(ContextLengthError("long", param="prompt")), "BadRequestError"),
        (ApiError(401, "invalid_request_error", "invalid_api_key", "no"), "AuthenticationError"),
        (unknown_model("x"), "NotFoundError"),
        (ApiError(429, "rate_limit_exceeded", None, "slow", retry_after_s=1), "RateLimitError"),
        (from_exception(NumericalError("nan")), "InternalServerError"),
        (from_exception(OverloadedError("full")), "InternalServerError"),
        (deadline_exceeded(), "InternalServerError"),
    ],
)
def test_errors_are_the_exceptions_that_the_client_has_for_them(error: ApiError, kind: str) -> None:
    def refuse(request: Any) -> Any:
        return httpx.Response(error.status, content=error.body(), headers=error.headers())

    with pytest.raises(getattr(openai, kind)) as caught:
        client(refuse).chat.completions.create(model="toy", messages=HELLO)
    found = caught.value
    assert (found.status_code, found.code, found.param, found.type) == (
        *(error.status, error.code),
        *(error.param, error.type),
    )


def test_what_the_client_says_wrong_is_named() -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client().chat.completions.create(model="toy", messages=HELLO, temperature=3)
    assert caught.value.param == "temperature"


def test_an_error_in_the_middle_of_a_stream_is_raised() -> None:
    def fail(request: Any) -> Any:
        stream = ChatStream(HEAD, chat(stream=True), 5, token_bytes)
        data = stream.push(update("Hi")) + stream.fail(from_exception(NumericalError("nan")))
        return httpx.Response(200, content=data, headers={"content-type": "text/event-stream"})

    stream = client(fail).chat.completions.create(model="toy", messages=HELLO, stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "Hi"]
    with pytest.raises(openai.APIError, match="NaN or infinity"):
        next(stream)


def test_retries_follow_our_headers() -> None:
    tries = []

    def refuse(request: Any) -> Any:
        error = from_exception(NumericalError("nan"))
        tries.append(error)
        return httpx.Response(error.status, content=error.body(), headers=error.headers())

    with pytest.raises(openai.InternalServerError):
        client(refuse).with_options(max_retries=3).chat.completions.create(model="toy", messages=HELLO)
    assert len(tries) == 1
