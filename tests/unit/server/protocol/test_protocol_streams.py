"""Replies and streams: their exact order, and that a stream's parts are the whole reply however the text was cut."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_toys import EOS, HEAD, chat, completion, events, merged, pieces_of, reading, scored, token_bytes, update

from kvik.engine.remote.frames import Update
from kvik.server.protocol.chat import ChatCall
from kvik.server.protocol.chat_reply import ChatReply
from kvik.server.protocol.chat_stream import ChatStream
from kvik.server.protocol.completion_reply import CompletionReply, EncodedPrompt
from kvik.server.protocol.completion_stream import CompletionStream
from kvik.server.protocol.errors import ApiError
from kvik.server.protocol.reasoning import Thinking
from kvik.server.protocol.sse import DONE, ReplyHead, to_json

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
STOPPED = {"finish_reason": "stop", "stop_reason": EOS}


def whole(call: ChatCall, updates: Sequence[Update], **options: Any) -> Any:
    reply = ChatReply(HEAD, call, 5, token_bytes, reading(**options))
    for each in updates:
        assert not reply.is_finished
        reply.push(each)
    assert reply.is_finished
    return json.loads(reply.body())


def streamed(call: ChatCall, updates: Sequence[Update], **options: Any) -> list[Any]:
    stream = ChatStream(HEAD, call, 5, token_bytes, reading(**options))
    data = b"".join(stream.push(each) for each in updates)
    assert stream.is_finished
    return events(data + stream.end())


def chunk(choices: list[Any], **more: Any) -> dict[str, Any]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "toy"}
    return {**head, "system_fingerprint": "fp_toy", "choices": choices, **more}


def choice(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 5,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
HI_YOU = [update("Hi", num_cached_tokens=4), update(""), update(" y"), update("", [EOS], **STOPPED)]


def test_order_of_a_stream_without_usage() -> None:
    assert streamed(chat(stream=True), HI_YOU) == [
        chunk([choice({"role": "assistant", "content": ""})]),
        chunk([choice({"content": "Hi"})]),
        chunk([choice({"content": " y"})]),
        chunk([choice({}, "stop")]),
        "[DONE]",
    ]


def test_order_of_a_stream_with_usage() -> None:
    assert streamed(chat(stream=True, stream_options={"include_usage": True}), HI_YOU) == [
        chunk([choice({"role": "assistant", "content": ""})], usage=None),
        chunk([choice({"content": "Hi"})], usage=None),
        chunk([choice({"content": " y"})], usage=None),
        chunk([choice({}, "stop")], usage=None),
        chunk([], usage=USAGE),
        "[DONE]",
    ]


@pytest.mark.parametrize("with_usage", [True, False])
def test_three_choices_interleave_and_each_has_its_role_and_end(with_usage: bool) -> None:
    updates = [
        *(update(text, index=index) for text in "ab" for index in range(3)),
        update("", [], index=1, finish_reason="length"),
        update("c", index=0, finish_reason="length"),
        update("c", index=2, finish_reason="length"),
    ]
    got = streamed(chat(n=3, stream=True, stream_options={"include_usage": with_usage}), updates)
    assert got.pop() == "[DONE]"
    if with_usage:
        last = got.pop()
        assert (last["choices"], last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == ([], 5, 8)
        assert all(each["usage"] is None for each in got)
    else:
        assert all("usage" not in each for each in got)
    order = [(c["index"], c["delta"].get("role") or c["delta"].get("content")) for each in got for c in each["choices"]]
    first = [pair for index in range(3) for pair in ((index, "assistant"), (index, "a"))]
    assert order == [*first, (0, "b"), (1, "b"), (2, "b"), (1, None), (0, "c"), (0, None), (2, "c"), (2, None)]
    assert [merged(got, index)[0]["content"] for index in range(3)] == ["abc", "ab", "abc"]


def test_whole_reply() -> None:
    assert whole(chat(), HI_YOU) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "toy",
        "system_fingerprint": "fp_toy",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi y", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


@pytest.mark.parametrize(
    ("ended", "finish", "stop_reason"),
    [
        ({"finish_reason": "stop", "stop_reason": "###"}, "stop", "###"),
        ({"finish_reason": "stop", "stop_reason": 7}, "stop", 7),
        ({"finish_reason": "stop", "stop_reason": EOS}, "stop", None),
        ({"finish_reason": "length"}, "length", None),
        ({"finish_reason": "deadline"}, "length", "deadline"),
    ],
)
def test_how_an_answer_ended(ended: dict[str, Any], finish: str, stop_reason: Any) -> None:
    call, updates = chat(stop_token_ids=[7]), [update("x"), update("y", **ended)]
    reply = whole(call, updates)["choices"][0]
    last = streamed(call, updates)[-2]["choices"][0]
    for got in (reply, last):
        assert got["finish_reason"] == finish
        assert got.get("stop_reason") == stop_reason


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [("abort", 503, "aborted"), ("error", 500, None), ("deadline", 504, "deadline_exceeded")],
)
def test_a_failure_before_the_first_token_is_an_error_of_its_own(reason: str, status: int, code: str | None) -> None:
    failed = update("", [], finish_reason=reason)
    prompts = [EncodedPrompt([1])]
    for push in (
        ChatStream(HEAD, chat(), 5, token_bytes).push,
        ChatReply(HEAD, chat(), 5, token_bytes).push,
        lambda each: CompletionStream(HEAD, completion(), prompts, token_bytes).push(0, each),
        lambda each: CompletionReply(HEAD, completion(), prompts, token_bytes).push(0, each),
    ):
        with pytest.raises(ApiError) as caught:
            push(failed)
        assert (caught.value.status, caught.value.code) == (status, code)


def test_a_failure_in_the_middle_is_the_last_event() -> None:
    stream = ChatStream(HEAD, chat(stream=True), 5, token_bytes)
    data = stream.push(update("Hi"))
    with pytest.raises(ApiError) as caught:
        stream.push(update("", [], finish_reason="error"))
    last = events(data + stream.fail(caught.value))[-1]
    assert last.keys() == {"error"}
    assert last["error"].keys() == {"message", "type", "param", "code"}


TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(
                    "<think>",
                    "</think>",
                    "<tool_call>",
                    "</tool_call>",
                    "\n",
                    "<",
                    "<tool",
                    '{"name": "f", "arguments"',
                ),
                '<tool_call>\n{"name": "f", "arguments": {"a": "}</tool_call>\\""}}\n</tool_call>',
                '<tool_call>{"arguments": {}, "name": "g"}</tool_call>',
                '<tool_call>{"name": "g", "arguments": {',
                '<tool_call>\n{"name": }\n</tool_call>',
                "<think>\nhm\n</think>\n\n",
            ]
        ),
        st.text(max_size=6),
    ),
    max_size=8,
).map("".join)


def message_of(text_pieces: Sequence[str], call: ChatCall, **options: Any) -> None:
    """Check a stream in these pieces against the whole reply to the same text in one piece."""
    updates = [*map(update, text_pieces), update("", [EOS], **STOPPED)]
    got = streamed(call, updates, **options)
    reply = whole(call, [update("".join(text_pieces)), updates[-1]], **options)["choices"][0]
    message, finish = merged([each for each in got if each != "[DONE]"])
    assert message == {key: value for key, value in reply["message"].items() if key != "refusal"}
    assert finish == reply["finish_reason"]
    assert (finish == "tool_calls") == ("tool_calls" in message)


@settings(max_examples=300, deadline=None)
@given(
    text=TEXTS,
    seed=st.integers(0, 2**32),
    tools=st.booleans(),
    thinking=st.sampled_from([None, Thinking(), Thinking(opened=True)]),
    parallel=st.booleans(),
    certain=st.booleans(),
)
def test_the_parts_of_a_stream_are_the_whole_reply(
    text: str, seed: int, tools: bool, thinking: Thinking | None, parallel: bool, certain: bool
) -> None:
    call = chat(tools=TOOLS, parallel_tool_calls=parallel) if tools else chat()
    message_of(pieces_of(text, random.Random(seed)), call, thinking=thinking, certain_calls=certain)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40), seed=st.integers(0, 2**32), echo=st.booleans(), logprobs=st.sampled_from([None, 1]))
def test_the_parts_of_a_completion_stream_are_the_whole_reply(
    text: str, seed: int, echo: bool, logprobs: int | None
) -> None:
    call = completion(echo=echo, logprobs=logprobs, stop=["stop"])
    prompt = EncodedPrompt(list(b"ab"), "ab")
    score = {"logprobs": logprobs is not None}
    updates = [update(piece, **score) for piece in pieces_of(text, random.Random(seed))]
    updates.append(update("", [EOS], **STOPPED, **score))
    if echo and logprobs is not None:
        first = [None, *scored(b"b")]
        updates[0] = Update("r", 0, updates[0].text, updates[0].token_ids, updates[0].logprobs, prompt_logprobs=first)
    reply = CompletionReply(HEAD, call, [prompt], token_bytes)
    stream = CompletionStream(HEAD, call, [prompt], token_bytes)
    data = b""
    for each in updates:
        reply.push(0, each)
        data += stream.push(0, each)
    assert stream.is_finished
    assert reply.is_finished
    got = [c for each in events(data + stream.end())[:-1] for c in each["choices"]]
    expected = json.loads(reply.body())["choices"][0]
    assert "".join(c["text"] for c in got) == expected["text"] == ("ab" if echo else "") + text
    assert [c["finish_reason"] for c in got] == [None] * (len(got) - 1) + ["stop"]
    if logprobs is None:
        assert expected["logprobs"] is None
    else:
        for name, values in expected["logprobs"].items():
            assert [v for c in got if c["logprobs"] for v in c["logprobs"][name]] == values


def test_completion_stream_in_order() -> None:
    call = completion(prompt=["ab", "c"], n=2, stream=True, stream_options={"include_usage": True})
    prompts = [EncodedPrompt([1, 2], "ab"), EncodedPrompt([3], "c")]
    head = ReplyHead("cmpl-1", 1, "toy")
    stream = CompletionStream(head, call, prompts, token_bytes)
    data = stream.push(0, update("x", index=1)) + stream.push(1, update("y", num_cached_tokens=1))
    data += stream.push(1, update("z", finish_reason="length"))
    data += b"".join(
        stream.push(p, update("", [], index=i, finish_reason="length")) for p, i in [(0, 0), (0, 1), (1, 1)]
    )
    assert stream.is_finished
    got = events(data + stream.end())
    assert got[0] == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "toy",
        "choices": [{"index": 1, "text": "x", "logprobs": None, "finish_reason": None}],
        "usage": None,
    }
    assert [(c["index"], c["text"], c["finish_reason"]) for each in got[:-1] for c in each["choices"]] == [
        *((1, "x", None), (2, "y", None), (2, "z", None), (2, "", "length")),
        *((0, "", "length"), (1, "", "length"), (3, "", "length")),
    ]
    usage = got[-2]["usage"]
    assert (got[-2]["choices"], usage["prompt_tokens"], usage["completion_tokens"]) == ([], 3, 3)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 1}
    assert got[-1] == "[DONE]"


def test_scoring_gives_the_prompt_and_nothing_else() -> None:
    call = completion(prompt=[[1, 2, 3]], max_tokens=0, echo=True, logprobs=1)
    assert call.scoring
    assert call.params.max_tokens == 1
    reply = CompletionReply(HEAD, call, [EncodedPrompt([97, 98, 99], "abc")], token_bytes)
    reply.push(0, update("x", logprobs=True, prompt_logprobs=[None, *scored(b"bc")], finish_reason="length"))
    body = json.loads(reply.body())
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.98, -0.99]
    assert body["usage"]["completion_tokens"] == 0


def test_an_echoed_prompt_waits_for_its_log_probabilities() -> None:
    call = completion(prompt="a", n=2, echo=True, logprobs=0, temperature=0.5)
    stream = CompletionStream(HEAD, call, [EncodedPrompt([97], "a")], token_bytes)
    assert stream.push(0, update("x", index=1, logprobs=True)) == b""
    data = stream.push(0, update("y", logprobs=True, prompt_logprobs=[None]))
    got = [c for each in events(data) for c in each["choices"]]
    assert [(c["index"], c["text"], c["logprobs"]["tokens"]) for c in got] == [
        (1, "ax", ["a", "x"]),
        (0, "ay", ["a", "y"]),
    ]


@settings(deadline=None)
@given(text=st.text())
def test_json_is_one_line_for_every_reader_of_lines(text: str) -> None:
    for value in (text, text + "\x85\u2028\u2029\x0b\x0c\x1c"):
        line = to_json(value)
        assert json.loads(line) == value
        assert len(line.decode().splitlines()) == 1


def test_official_types_accept_every_body_and_chunk() -> None:
    pytest.importorskip("openai")
    from openai.types import Completion
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    text = '<think>\nhm\n</think>\n\nHi\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    call = chat(tools=TOOLS, logprobs=True, top_logprobs=1, n=2)
    updates = [
        *(update(piece, index=index, logprobs=True) for index in range(2) for piece in (text[:20], text[20:])),
        *(update("", [EOS], index=index, logprobs=True, **STOPPED) for index in range(2)),
    ]
    body = ChatCompletion.model_validate(whole(call, updates, thinking=Thinking()))
    assert body.choices[1].message.tool_calls is not None
    assert body.choices[1].message.tool_calls[0].id == "call_1"
    assert body.usage is not None
    for each in streamed(call, updates, thinking=Thinking())[:-1]:
        ChatCompletionChunk.model_validate(each)
    reply = CompletionReply(HEAD, completion(logprobs=2), [EncodedPrompt([97, 98])], token_bytes)
    reply.push(0, update("xy", logprobs=True, finish_reason="length"))
    Completion.model_validate_json(reply.body())


def test_nothing_follows_done() -> None:
    assert DONE == b"data: [DONE]\n\n"
    assert streamed(chat(), HI_YOU)[-1] == "[DONE]"
