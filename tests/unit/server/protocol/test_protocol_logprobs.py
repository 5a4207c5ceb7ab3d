"""Log-probabilities: their shapes, which tokens have one, and that tokens add up to the text."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_toys import EOS, HEAD, chat, pieces_of, scored, token_bytes, update

from kvik.request import Logprob, TokenLogprobs
from kvik.server.protocol.chat_reply import ChatReply
from kvik.server.protocol.logprobs import FLOOR, CompletionLogprobs, TextTokens, chat_entries, finite, token_name

ENDED = {"finish_reason": "stop", "stop_reason": EOS}


@pytest.mark.parametrize(
    ("given", "said"), [(-1.5, -1.5), (0.0, 0.0), (1e-9, 0.0), (-math.inf, FLOOR), (-1e5, FLOOR), (math.nan, FLOOR)]
)
def test_every_log_probability_can_be_said_in_json(given: float, said: float) -> None:
    assert finite(given) == said


def test_entries_of_a_chat() -> None:
    entry = TokenLogprobs(0xC3, -0.5, (Logprob(97, -0.25), Logprob(0xC3, -math.inf)))
    assert chat_entries([entry], token_bytes) == {
        "content": [
            {
                "token": "\ufffd",
                "logprob": -0.5,
                "bytes": [0xC3],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.25, "bytes": [97]},
                    {"token": "\ufffd", "logprob": FLOOR, "bytes": [0xC3]},
                ],
            }
        ],
        "refusal": None,
    }


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=30), seed=st.integers(0, 2**32))
def test_the_bytes_of_a_chats_tokens_are_its_text(text: str, seed: int) -> None:
    reply = ChatReply(HEAD, chat(logprobs=True, top_logprobs=2), 1, token_bytes)
    for piece in pieces_of(text, random.Random(seed)):
        reply.push(update(piece, logprobs=True))
    reply.push(update("", [EOS], logprobs=True, **ENDED))
    choice = json.loads(reply.body())["choices"][0]
    content = choice["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == text == choice["message"]["content"]
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in content)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text("abc", max_size=12),
    stop=st.text("abc", min_size=1, max_size=4),
    size=st.integers(1, 4),
    rest=st.text("xyz", max_size=2),
)
def test_tokens_of_a_stop_string_are_left_out(text: str, stop: str, size: int, rest: str) -> None:
    text = (text + stop)[: (text + stop).index(stop)]
    tokens = [(text + stop)[at : at + size] for at in range(0, len(text + stop), size)]
    tokens[-1] += rest
    spelled = [token.encode() for token in tokens]
    entries = [TokenLogprobs(number, -1.0) for number in range(len(tokens))]
    finder = TextTokens((stop, "zzzz"), spelled.__getitem__)
    found = [each for entry in entries[:-1] for each in finder.push(update("", [entry.token_id], logprobs=[entry]))]
    found += finder.push(update("", [0], logprobs=entries[-1:], finish_reason="stop", stop_reason=stop))
    assert found == [entry for entry in entries if entry.token_id * size < len(text)]


def test_a_stop_string_may_end_in_the_middle_of_an_update() -> None:
    finder = TextTokens(("cd",), token_bytes)
    assert finder.push(update("ab", logprobs=True)) == scored(b"a")
    assert finder.push(update("", b"cdx", logprobs=True, finish_reason="stop", stop_reason="cd")) == scored(b"b")


@pytest.mark.parametrize(
    ("ended", "kept"),
    [
        ({"finish_reason": "stop", "stop_reason": EOS}, b"ab"),
        ({"finish_reason": "stop", "stop_reason": "zz"}, [*b"ab", EOS]),
        ({"finish_reason": "stop"}, [*b"ab", EOS]),
        ({"finish_reason": "length"}, [*b"ab", EOS]),
        ({"finish_reason": "deadline"}, [*b"ab", EOS]),
    ],
)
def test_the_token_that_ended_the_answer_is_left_out(ended: dict[str, Any], kept: list[int]) -> None:
    for stop in ((), ("stop",)):
        finder = TextTokens(stop, token_bytes)
        found = finder.push(update("a", logprobs=True)) + finder.push(update("b", [98, EOS], logprobs=True, **ended))
        assert found == scored(kept)


def test_without_stop_strings_every_entry_comes_at_once() -> None:
    assert TextTokens((), token_bytes).push(update("ab", logprobs=True)) == scored(b"ab")


def test_parts_of_characters_have_names_of_their_own() -> None:
    assert token_name(b"a") == "a"
    assert token_name("é".encode()) == "é"
    assert token_name(b"\xf0\x9f") == "bytes:\\xf0\\x9f"


@settings(deadline=None)
@given(prompt=st.text(max_size=10), answer=st.text(max_size=10))
def test_offsets_of_a_completion_count_characters(prompt: str, answer: str) -> None:
    logprobs = CompletionLogprobs(token_bytes)
    entries: list[TokenLogprobs | None] = [*scored(prompt.encode())]
    first = logprobs.prompt(list(prompt.encode()), entries, prompt)
    then = logprobs.answer(scored(answer.encode()))
    text = prompt + answer
    expected = [place for place, char in enumerate(text) for _ in char.encode()]
    assert first["text_offset"] + then["text_offset"] == expected
    for name, offset in zip(first["tokens"] + then["tokens"], expected, strict=True):
        assert name.startswith("bytes:") or text[offset] == name


def test_what_a_prompts_tokens_say_beyond_its_text_stands_before_it() -> None:
    spelled = {1: b"<s>", 2: b" Hello", 3: b" you"}
    logprobs = CompletionLogprobs(spelled.__getitem__)
    entries = [None, TokenLogprobs(2, -0.02), TokenLogprobs(3, -0.03)]
    part = logprobs.prompt([1, 2, 3], entries, "Hello you")
    assert part["tokens"] == ["<s>", " Hello", " you"]
    assert part["token_logprobs"] == [None, -0.02, -0.03]
    assert part["top_logprobs"][0] is None
    assert part["text_offset"] == [0, 0, 5]
    assert logprobs.answer([TokenLogprobs(3, -1.0)])["text_offset"] == [9]


def test_the_drawn_token_is_always_among_the_likeliest() -> None:
    entry = TokenLogprobs(97, -5.0, (Logprob(98, -0.5), Logprob(99, -math.inf)))
    [top] = CompletionLogprobs(token_bytes).answer([entry])["top_logprobs"]
    assert top == {"b": -0.5, "c": FLOOR, "a": -5.0}
    assert next(iter(top)) == "b"


def test_of_tokens_spelled_alike_the_likeliest_is_named() -> None:
    entry = TokenLogprobs(1, -2.0, (Logprob(2, -0.5), Logprob(3, -1.0)))
    [top] = CompletionLogprobs(lambda token_id: b"x").answer([entry])["top_logprobs"]
    assert top == {"x": -0.5}
