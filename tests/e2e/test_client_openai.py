"""OpenAI's own client against the live server: answers, streams, structure, errors and what it does about them.

Every reply is read by the client's types, so a field that is missing or misnamed fails here. Skipped where the client
is not installed. It knows nothing of bytes on the wire; tests/unit/server reads those.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from served import KEY, TOOL, WAIT_S, WEATHER, Served, fake, obeys, said_to, speller

openai = pytest.importorskip("openai", reason="openai is not installed")

__all__ = ["fake", "speller"]
FORMAT = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}


def options_for(served: Served, **options: Any) -> dict[str, Any]:
    return {"base_url": served.url, "api_key": KEY, "max_retries": 0, "timeout": WAIT_S} | options


@contextmanager
def client(served: Served, **options: Any) -> Iterator[Any]:
    """A client that gives up at once unless told otherwise."""
    with openai.OpenAI(**options_for(served, **options)) as opened:
        yield opened


def chat(served: Served, text: str, retries: int = 0, **fields: Any) -> Any:
    """The answer to one message, at temperature 0 unless told otherwise."""
    messages = [{"role": "user", "content": text}]
    with client(served, max_retries=retries) as opened:
        return opened.chat.completions.create(**{"model": "m", "messages": messages, "temperature": 0} | fields)


def streamed(served: Served, text: str, **fields: Any) -> list[Any]:
    """All events of one stream."""
    messages = [{"role": "user", "content": text}]
    with client(served) as opened:
        fields = {"model": "m", "messages": messages, "temperature": 0, "stream": True} | fields
        return list(opened.chat.completions.create(**fields))


def test_a_chat_says_what_the_model_says(fake: Served) -> None:
    reply = chat(fake, "hello")
    assert (reply.object, reply.model, len(reply.choices)) == ("chat.completion", "m", 1)
    choice = reply.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", said_to("hello"))
    assert choice.finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply._request_id.startswith("req-")


def test_a_stream_adds_up_to_the_same(fake: Served) -> None:
    events = streamed(fake, "hello", stream_options={"include_usage": True})
    *chunks, usage = events
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said_to("hello")
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices[0].delta.role] == ["assistant"]
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert (usage.choices, usage.usage) == ([], chat(fake, "hello").usage.model_copy(update=cached(usage)))
    assert len({(event.id, event.created) for event in events}) == 1


def cached(event: Any) -> dict[str, Any]:
    """The one part of usage that may differ from one time to the next."""
    return {"prompt_tokens_details": event.usage.prompt_tokens_details}


def test_the_client_accumulates_a_stream_itself(fake: Served) -> None:
    with client(fake) as opened:
        messages = [{"role": "user", "content": "hello"}]
        with opened.chat.completions.stream(model="m", messages=messages, temperature=0) as stream:
            deltas = "".join(event.delta for event in stream if event.type == "content.delta")
            final = stream.get_final_completion()
    assert deltas == final.choices[0].message.content == said_to("hello")


def test_three_choices_are_three_answers_each_whole(fake: Served) -> None:
    reply = chat(fake, "hello", n=3, temperature=1, seed=7)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    pieces = ["", "", ""]
    for event in streamed(fake, "hello", n=3, temperature=1, seed=7):
        choice = event.choices[0]
        pieces[choice.index] += choice.delta.content or ""
    assert pieces == texts


def test_logprobs_spell_the_answer(fake: Served) -> None:
    entries = chat(fake, "hello", logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == said_to("hello")
    for entry in entries:
        assert len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
    parts = [event.choices[0].logprobs for event in streamed(fake, "hello", logprobs=True, top_logprobs=2)]
    assert [entry for part in parts if part for entry in part.content] == entries


def test_completions_take_several_prompts_and_score_them(fake: Served) -> None:
    with client(fake) as opened:
        ask = {"model": "m", "prompt": ["one", "two"], "max_tokens": 3, "temperature": 0}
        whole = opened.completions.create(**ask)
        pieces = ["", ""]
        for event in opened.completions.create(**ask, stream=True):
            pieces[event.choices[0].index] += event.choices[0].text
        scored = opened.completions.create(model="m", prompt="one", max_tokens=1, echo=True, logprobs=1)
    assert [choice.text for choice in whole.choices] == pieces
    assert scored.choices[0].text.startswith("one")
    assert scored.choices[0].logprobs.token_logprobs[0] is None
    assert "".join(scored.choices[0].logprobs.tokens) == scored.choices[0].text


def test_models_are_listed_and_looked_up(fake: Served) -> None:
    with client(fake) as opened:
        assert [model.id for model in opened.models.list()] == ["m"]
        assert opened.models.retrieve("m").object == "model"
        with pytest.raises(openai.NotFoundError):
            opened.models.retrieve("org/other")


# Structure ----------------------------------------------------------------------------------------------------------


def test_an_answer_follows_its_schema(speller: Served) -> None:
    reply = chat(speller, "hello", response_format=FORMAT, temperature=1, n=3)
    for choice in reply.choices:
        assert choice.finish_reason == "stop"
        assert obeys(json.loads(choice.message.content))
    text = "".join(e.choices[0].delta.content or "" for e in streamed(speller, "hello", response_format=FORMAT))
    assert text == chat(speller, "hello", response_format=FORMAT).choices[0].message.content


def test_the_client_parses_into_its_own_types(speller: Served) -> None:
    pydantic = pytest.importorskip("pydantic")
    answer = pydantic.create_model("Answer", yes=(bool, ...))
    with client(speller) as opened:
        messages = [{"role": "user", "content": "hello"}]
        reply = opened.chat.completions.parse(model="m", messages=messages, response_format=answer)
    assert reply.choices[0].message.parsed.yes in (True, False)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_is_called_and_its_answer_taken(speller: Served, choice: Any) -> None:
    fields = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    made = chat(speller, "hello", **fields).choices[0]
    (call,) = made.message.tool_calls
    assert (made.finish_reason, made.message.content, call.function.name) == ("tool_calls", None, "weather")
    assert obeys(json.loads(call.function.arguments))
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    messages = [{"role": "user", "content": "hello"}, made.message.model_dump(exclude_none=True), result]
    assert chat(speller, "", messages=messages, tools=[TOOL], max_tokens=4).usage.completion_tokens == 4


def test_a_streamed_call_is_the_same_call(speller: Served) -> None:
    fields = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    whole = chat(speller, "hello", **fields).choices[0].message.tool_calls[0].function
    events = streamed(speller, "hello", **fields)
    deltas = [call for event in events for call in event.choices[0].delta.tool_calls or []]
    assert {call.index for call in deltas} == {0}
    assert [call.function.name for call in deltas if call.id] == [whole.name]
    assert "".join(call.function.arguments or "" for call in deltas) == whole.arguments
    assert events[-1].choices[0].finish_reason == "tool_calls"


# Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error", "param", "code"),
    [
        ({"model": "other"}, "NotFoundError", "model", "model_not_found"),
        ({"temperature": 9}, "BadRequestError", "temperature", None),
        ({"messages": []}, "BadRequestError", "messages", None),
        ({"top_logprobs": 2}, "BadRequestError", "top_logprobs", None),
        (
            {"messages": [{"role": "user", "content": "a" * 5000}]},
            "BadRequestError",
            "messages",
            "context_length_exceeded",
        ),
        ({"tool_choice": "required"}, "BadRequestError", "tool_choice", None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_wrong_is_said_in_the_clients_own_words(
    fake: Served, fields: dict[str, Any], error: str, param: str, code: str | None
) -> None:
    with pytest.raises(getattr(openai, error)) as caught:
        chat(fake, "hello", retries=2, **fields, extra_headers={"x-request-id": f"wrong-{param}-{code}"})
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")
    assert len(fake.statuses(f"wrong-{param}-{code}")) == 1, "what is wrong stays wrong"


def test_a_wrong_key_is_an_authentication_error(fake: Served) -> None:
    with client(fake, api_key="the-key-of-nobody") as opened, pytest.raises(openai.AuthenticationError) as caught:
        opened.models.list()
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(("fault", "tries"), [("raise", 2), ("nan", 1)])
def test_a_failed_answer_is_tried_again_only_if_that_may_help(fake: Served, fault: str, tries: int) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        chat(fake, f"[[{fault}]]", retries=1, extra_headers={"x-request-id": f"failed-{fault}"})
    assert caught.value.type == "server_error"
    assert caught.value.request_id == f"failed-{fault}"
    assert fake.statuses(f"failed-{fault}") == [500] * tries
    assert chat(fake, "hello").choices[0].message.content == said_to("hello"), "nobody else is harmed"


def test_a_stream_that_fails_raises_after_what_was_said(fake: Served) -> None:
    said: list[Any] = []
    messages = [{"role": "user", "content": "[[nan@5]]"}]
    with client(fake) as opened:
        stream = opened.chat.completions.create(model="m", messages=messages, stream=True, temperature=0)
        with pytest.raises(openai.APIError) as caught:
            said.extend(event.choices[0] for event in stream)
    assert caught.value.code == "numerical_error"
    assert "".join(choice.delta.content or "" for choice in said) == said_to("[[nan@5]]", 4)
    assert {choice.finish_reason for choice in said} == {None}


def await_refusal(served: Served, request_id: str) -> None:
    """Until this request has been told to come back later."""
    end = time.monotonic() + WAIT_S
    while not any(f"id={request_id} " in line and "status=429" in line for line in served.lines):
        assert time.monotonic() < end, served.lines
        time.sleep(0.005)


def test_too_many_at_once_wait_as_long_as_they_are_told() -> None:
    """A caller over their limit gets a 429; the client sleeps for Retry-After and is let in once there is room."""
    with Served("fake:length=100000,step_ms=5,max_model_len=20000", "--max-concurrent", "1") as served:
        with client(served) as opened:
            messages = [{"role": "user", "content": "on and on"}]
            stream = opened.chat.completions.create(model="m", messages=messages, stream=True)
            next(iter(stream))
            with pytest.raises(openai.RateLimitError) as caught:
                chat(served, "hello", max_tokens=2)
            assert caught.value.response.headers["retry-after"] == "1"
            leaving = threading.Thread(target=lambda: (await_refusal(served, "patient"), stream.close()))
            leaving.start()
            start = time.monotonic()
            headers = {"x-request-id": "patient"}
            assert chat(served, "hello", retries=5, max_tokens=2, extra_headers=headers).usage.completion_tokens == 2
            leaving.join()
        *refused, last = served.statuses("patient")
        assert (set(refused), last) == ({429}, 200)
        assert time.monotonic() - start >= 1.0 * len(refused)


def test_a_deadline_of_the_clients_own_frees_the_engine(fake: Served) -> None:
    before = fake.stats()["engine"]["requests_ended"]["abort"]
    with client(fake, timeout=1.0) as opened, pytest.raises(openai.APITimeoutError):
        opened.chat.completions.create(model="m", messages=[{"role": "user", "content": "[[slow]]"}])
    fake.until(lambda seen: seen["engine"]["requests_ended"]["abort"] == before + 1)
    assert fake.stats()["engine"]["requests_running"] == 0


def test_a_stream_that_is_left_frees_the_engine(fake: Served) -> None:
    before = fake.stats()["engine"]["requests_ended"]["abort"]
    with client(fake) as opened:
        messages = [{"role": "user", "content": "[[slow]]"}]
        with opened.chat.completions.create(model="m", messages=messages, stream=True) as stream:
            next(iter(stream))
    fake.until(lambda seen: seen["engine"]["requests_ended"]["abort"] == before + 1)


def test_a_deadline_given_to_the_server_is_kept_by_it(fake: Served) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        chat(fake, "hello", extra_headers={"x-request-timeout": "0.000001"})
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
    cut = chat(fake, "[[slow]]", extra_headers={"x-request-timeout": "1"}).choices[0]
    assert (cut.finish_reason, cut.stop_reason) == ("length", "deadline")
    assert cut.message.content
    assert said_to("[[slow]]").startswith(cut.message.content)


def test_many_at_once_get_each_their_own_answer(fake: Served) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(**options_for(fake)) as opened:
            asks = [
                opened.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": f"number {i}"}], temperature=0
                )
                for i in range(32)
            ]
            return [reply.choices[0].message.content for reply in await asyncio.gather(*asks)]

    assert asyncio.run(ask_all()) == [said_to(f"number {i}") for i in range(32)]
