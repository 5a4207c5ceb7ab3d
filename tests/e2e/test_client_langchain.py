"""langchain-openai against the live server: messages, tools and structured answers.

It reads replies more strictly than OpenAI's own client and asks for usage in its own way. Skipped where it is not
installed. It knows nothing of bytes on the wire.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from served import KEY, TOOL, WAIT_S, WEATHER, Served, fake, obeys, said_to, speller

langchain_openai = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
messages = pytest.importorskip("langchain_core.messages", reason="langchain-core is not installed")
openai = pytest.importorskip("openai", reason="openai is not installed")

__all__ = ["fake", "speller"]
SCHEMA = {"title": "weather", "description": "The weather to be.", **WEATHER}


def model(served: Served, **options: Any) -> Any:
    """A chat model at temperature 0 that gives up at once, unless told otherwise."""
    common = {"base_url": served.url, "api_key": KEY, "model": "m", "max_retries": 0, "timeout": WAIT_S}
    return langchain_openai.ChatOpenAI(**common | {"temperature": 0} | options)


def test_a_chat_says_what_the_model_says(fake: Served) -> None:
    reply = model(fake).invoke("hello")
    assert reply.content == said_to("hello")
    assert reply.response_metadata["finish_reason"] == "stop"
    assert reply.usage_metadata["output_tokens"] == 25


def test_a_stream_adds_up_to_the_same_with_usage_if_asked_for(fake: Served) -> None:
    chunks = list(model(fake, stream_usage=True).stream("hello"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert (whole.content, whole.usage_metadata["output_tokens"]) == (said_to("hello"), 25)
    assert whole.response_metadata["finish_reason"] == "stop"
    assert all(chunk.usage_metadata is None for chunk in model(fake, stream_usage=False).stream("hello"))


def test_the_asynchronous_door_is_the_same(fake: Served) -> None:
    async def ask() -> list[str]:
        opened = model(fake)
        whole = await opened.abatch(["hello", "again"])
        return [each.content for each in whole] + ["".join([chunk.content async for chunk in opened.astream("hello")])]

    assert asyncio.run(ask()) == [said_to("hello"), said_to("again"), said_to("hello")]


def test_three_choices_and_log_probabilities(fake: Served) -> None:
    told = model(fake, n=3, temperature=1, seed=7).generate([[messages.HumanMessage("hello")]])
    assert len({made.text for made in told.generations[0]}) == 3
    reply = model(fake, logprobs=True, top_logprobs=2).invoke("hello")
    entries = reply.response_metadata["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == said_to("hello")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_structured_answer_is_what_was_asked_for(speller: Served, method: str) -> None:
    assert obeys(model(speller).with_structured_output(SCHEMA, method=method, strict=True).invoke("hello"))


def test_a_tool_is_called_and_its_answer_taken(speller: Served) -> None:
    bound = model(speller).bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False)
    made = bound.invoke("hello")
    (call,) = made.tool_calls
    assert call["name"] == "weather"
    assert obeys(call["args"])
    chunks = list(bound.stream("hello"))
    streamed = chunks[0]
    for chunk in chunks[1:]:
        streamed += chunk
    assert [each["args"] for each in streamed.tool_calls] == [call["args"]]
    answered = [messages.HumanMessage("hello"), made, messages.ToolMessage("rain", tool_call_id=call["id"])]
    assert model(speller, max_tokens=4).invoke(answered).usage_metadata["output_tokens"] == 4


@pytest.mark.parametrize(
    ("options", "asked", "error"),
    [
        ({"model": "other"}, "hello", "NotFoundError"),
        ({"api_key": "the-key-of-nobody"}, "hello", "AuthenticationError"),
        ({"temperature": 9}, "hello", "BadRequestError"),
        ({}, "a" * 5000, "BadRequestError"),
        ({}, "[[nan]]", "InternalServerError"),
        ({"timeout": 1.0}, "[[slow]]", "APITimeoutError"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 100 else "",
)
def test_errors_are_the_clients_own(fake: Served, options: dict[str, Any], asked: str, error: str) -> None:
    with pytest.raises(getattr(openai, error)):
        model(fake, **options).invoke(asked)


@pytest.mark.parametrize(("fault", "tries"), [("raise", 2), ("nan", 1)])
def test_a_failed_answer_is_tried_again_only_if_that_may_help(fake: Served, fault: str, tries: int) -> None:
    headers = {"x-request-id": f"chain-{fault}"}
    with pytest.raises(openai.InternalServerError):
        model(fake, max_retries=1, default_headers=headers).invoke(f"[[{fault}]]")
    assert fake.statuses(f"chain-{fault}") == [500] * tries


def test_a_stream_that_fails_raises_after_what_was_said(fake: Served) -> None:
    said: list[str] = []
    with pytest.raises(openai.APIError):
        said.extend(chunk.content for chunk in model(fake).stream("[[nan@5]]"))
    assert "".join(said) == said_to("[[nan@5]]", 4)


def test_over_the_limit_is_a_rate_limit() -> None:
    with Served("fake:length=100000,step_ms=5,max_model_len=20000", "--max-concurrent", "1") as served:
        stream = model(served).stream("on and on")
        next(stream)
        with pytest.raises(openai.RateLimitError):
            model(served).invoke("hello")
        stream.close()


def test_a_deadline_of_the_clients_own_frees_the_engine(fake: Served) -> None:
    before = fake.stats()["engine"]["requests_ended"]["abort"]
    with pytest.raises(openai.APITimeoutError):
        model(fake, timeout=1.0).invoke("[[slow]]")
    fake.until(lambda seen: seen["engine"]["requests_ended"]["abort"] == before + 1)
