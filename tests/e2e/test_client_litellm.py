"""LiteLLM against the live server, as its proxy and its users call any server that speaks OpenAI's API.

It rewrites what it sends and what it gets, and guesses errors from their words, so each of these has to survive that.
Skipped where it is not installed. It knows nothing of bytes on the wire.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest
from served import KEY, TOOL, WAIT_S, WEATHER, Served, fake, obeys, said_to, speller

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else importing it asks the network for prices
litellm = pytest.importorskip("litellm", reason="litellm is not installed")

__all__ = ["fake", "speller"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
"""Its own; ours are errors elsewhere."""
LONG = [{"role": "user", "content": "a" * 5000}]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    """It prints advice on every error, and reports to its makers, unless told not to."""
    litellm.suppress_debug_info, litellm.telemetry = True, False


def fields_for(served: Served, text: str, **fields: Any) -> dict[str, Any]:
    common = {"model": "openai/m", "api_base": served.url, "api_key": KEY, "max_retries": 0}
    ask = {"messages": [{"role": "user", "content": text}], "temperature": 0, "timeout": WAIT_S}
    return common | ask | fields


def chat(served: Served, text: str, **fields: Any) -> Any:
    """The answer to one message, or the stream of it."""
    return litellm.completion(**fields_for(served, text, **fields))


def test_a_chat_says_what_the_model_says(fake: Served) -> None:
    reply = chat(fake, "hello")
    assert reply.choices[0].message.content == said_to("hello")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == 25


def test_a_stream_adds_up_to_the_same(fake: Served) -> None:
    chunks = list(chat(fake, "hello", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said_to("hello")
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    built = litellm.stream_chunk_builder(chunks)
    assert built.choices[0].message.content == said_to("hello")
    assert built.usage.completion_tokens == 25


def test_the_asynchronous_door_is_the_same(fake: Served) -> None:
    async def ask() -> tuple[str, str]:
        whole = await litellm.acompletion(**fields_for(fake, "hello"))
        stream = await litellm.acompletion(**fields_for(fake, "hello", stream=True))
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return whole.choices[0].message.content, "".join(pieces)

    assert asyncio.run(ask()) == (said_to("hello"), said_to("hello"))


def test_three_choices_with_log_probabilities(fake: Served) -> None:
    reply = chat(fake, "hello", n=3, temperature=1, seed=7, logprobs=True, top_logprobs=2)
    assert len({choice.message.content for choice in reply.choices}) == 3
    for choice in reply.choices:
        entries = choice.logprobs.content
        assert b"".join(bytes(entry.bytes) for entry in entries).decode() == choice.message.content
        assert {len(entry.top_logprobs) for entry in entries} == {2}


def test_a_text_completion(fake: Served) -> None:
    common = {"model": "text-completion-openai/m", "api_base": fake.url, "api_key": KEY, "max_retries": 0}
    reply = litellm.text_completion(**common, prompt="one", max_tokens=3, temperature=0)
    assert reply.usage.completion_tokens == 3
    assert reply.choices[0].finish_reason == "length"


def test_an_answer_follows_its_schema(speller: Served) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    assert obeys(json.loads(chat(speller, "hello", response_format=wanted).choices[0].message.content))


def test_a_tool_is_called_whole_and_streamed(speller: Served) -> None:
    pytest.importorskip("mcp", reason="mcp, which this client imports where there are tools, is not installed")
    tools = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    made = chat(speller, "hello", **tools).choices[0]
    (call,) = made.message.tool_calls
    assert (made.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert obeys(json.loads(call.function.arguments))
    built = litellm.stream_chunk_builder(list(chat(speller, "hello", stream=True, **tools))).choices[0]
    assert built.finish_reason == "tool_calls"
    assert built.message.tool_calls[0].function.arguments == call.function.arguments


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "openai/other"}, "NotFoundError"),
        ({"api_key": "the-key-of-nobody"}, "AuthenticationError"),
        ({"temperature": 9}, "BadRequestError"),
        ({"messages": LONG}, "ContextWindowExceededError"),
        ({"messages": [{"role": "user", "content": "a" * 200_000}]}, "ContextWindowExceededError"),
        ({"messages": [{"role": "user", "content": "[[nan]]"}]}, "InternalServerError"),
        ({"messages": [{"role": "user", "content": "[[slow]]"}], "timeout": 1.0}, "Timeout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_are_told_apart(fake: Served, fields: dict[str, Any], error: str) -> None:
    with pytest.raises(getattr(litellm, error)) as caught:
        chat(fake, "hello", **fields)
    assert type(caught.value).__name__ == error


@pytest.mark.parametrize(("fault", "tries"), [("raise", 2), ("nan", 1)])
def test_a_failed_answer_is_tried_again_only_if_that_may_help(fake: Served, fault: str, tries: int) -> None:
    with pytest.raises(litellm.InternalServerError):
        chat(fake, f"[[{fault}]]", max_retries=1, extra_headers={"x-request-id": f"lite-{fault}"})
    assert fake.statuses(f"lite-{fault}") == [500] * tries


def test_a_stream_that_fails_raises_after_what_was_said(fake: Served) -> None:
    stream = chat(fake, "[[nan@5]]", stream=True)
    with pytest.raises(litellm.exceptions.MidStreamFallbackError) as caught:
        list(stream)
    assert caught.value.generated_content == said_to("[[nan@5]]", 4)


def test_over_the_limit_is_a_rate_limit() -> None:
    with Served("fake:length=100000,step_ms=5,max_model_len=20000", "--max-concurrent", "1") as served:
        stream = chat(served, "on and on", stream=True)
        next(iter(stream))
        with pytest.raises(litellm.RateLimitError):
            chat(served, "hello")


def test_a_deadline_of_the_clients_own_frees_the_engine(fake: Served) -> None:
    before = fake.stats()["engine"]["requests_ended"]["abort"]
    with pytest.raises(litellm.Timeout):
        chat(fake, "[[slow]]", timeout=1.0)
    fake.until(lambda seen: seen["engine"]["requests_ended"]["abort"] == before + 1)


def test_three_choices_streamed_are_those_of_a_whole_reply(fake: Served) -> None:
    fields = {"n": 3, "temperature": 1, "seed": 7}
    whole = [choice.message.content for choice in chat(fake, "hello", **fields).choices]
    pieces = ["", "", ""]
    for chunk in chat(fake, "hello", stream=True, **fields):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == whole
