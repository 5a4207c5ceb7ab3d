"""The tokenizer made in memory: text is its bytes, and whatever is said of a Tokenizer holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvik.text.byte_tokenizer import SPECIAL_TOKENS, byte_tokenizer
from kvik.text.tokenizer import Tokenizer

PIECES = [b"ka", " où".encode(), b"\xf0\x9f", b"\x98\x80", b"[]"]
TOKENIZER = byte_tokenizer(PIECES)
END_OF_TEXT, IM_START, IM_END = (256 + len(PIECES) + index for index in range(3))
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def ids(text: str) -> list[int]:
    """Token ids of a text that spells special tokens on purpose."""
    for index, token in enumerate(SPECIAL_TOKENS):
        text = text.replace(token, chr(0xF0000 + index))
    known = {chr(0xF0000 + index): END_OF_TEXT + index for index in range(len(SPECIAL_TOKENS))}
    return [token for char in text for token in ([known[char]] if char in known else char.encode())]


def test_ids_stand_where_they_should() -> None:
    assert TOKENIZER.vocab_size == IM_END + 1
    assert TOKENIZER.eos_ids == (IM_END, END_OF_TEXT)
    assert TOKENIZER.bos_id is None
    spelled = [bytes([byte]) for byte in range(256)] + PIECES + [token.encode() for token in SPECIAL_TOKENS]
    assert [TOKENIZER.token_bytes(token_id) for token_id in range(TOKENIZER.vocab_size)] == spelled
    assert TOKENIZER.token_bytes(TOKENIZER.vocab_size) == b""
    assert byte_tokenizer().vocab_size == 259


@given(st.text())
def test_any_text_is_its_bytes_and_comes_back(text: str) -> None:
    encoded = TOKENIZER.encode(text)
    assert encoded == list(text.encode())
    assert TOKENIZER.decode(encoded) == text


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|im_start|>system\n", "<|endoftext|>" * 3, "ka où []"])
def test_special_tokens_and_pieces_spelled_in_a_text_are_bytes(text: str) -> None:
    assert TOKENIZER.encode(text) == list(text.encode())


@given(st.lists(st.lists(st.integers(0, IM_END + 5))), st.booleans())
def test_a_stream_says_what_decoding_at_once_says(parts: list[list[int]], skip: bool) -> None:
    tokens = [token for part in parts for token in part]
    for stream in (TOKENIZER.stream(skip), TOKENIZER.window_stream(skip)):
        text = "".join(stream.push(part) for part in parts) + stream.finish()
        assert text == TOKENIZER.decode(tokens, skip_special_tokens=skip)


def test_a_character_of_two_tokens_waits_for_the_second() -> None:
    stream = TOKENIZER.stream()
    assert [stream.push([token]) for token in (256, 258, 259, 257)] == ["ka", "", "😀", " où"]


def test_a_conversation_is_chatml() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Grüß <|im_end|> Gott"}]
    text = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nGrüß {} Gott<|im_end|>\n<|im_start|>assistant\n"
    before, after = text.split("{}")
    assert TOKENIZER.render_chat(messages) == text.format("<|im_end|>")
    assert TOKENIZER.encode_chat(messages) == ids(before) + list(b"<|im_end|>") + ids(after)
    assert TOKENIZER.render_chat(messages[:1], add_generation_prompt=False) == "<|im_start|>system\nS<|im_end|>\n"


def test_the_parts_of_a_content_follow_one_another() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]
    text = TOKENIZER.render_chat([{"role": "user", "content": parts}], add_generation_prompt=False)
    assert text == "<|im_start|>user\none two<|im_end|>\n"


def test_tools_their_calls_and_their_answers_are_written() -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Ørsta"}'}},
        {"id": "2", "type": "function", "function": {"name": "weather", "arguments": {"place": "Ås"}}},
    ]
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    text = TOKENIZER.render_chat(messages, tools=[TOOL])
    head, *turns = text.split("<|im_start|>")[1:]
    assert head.splitlines()[2] == json.dumps(TOOL)
    assert turns[1] == (
        'assistant\n\n<tool_call>\n{"name": "weather", "arguments": {"place": "Ørsta"}}\n</tool_call>'
        '\n<tool_call>\n{"name": "weather", "arguments": {"place": "Ås"}}\n</tool_call><|im_end|>\n'
    )
    assert turns[2] == "tool\nrain<|im_end|>\n"
    assert TOKENIZER.encode_chat(messages, tools=[TOOL]) == ids(text)


@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()})))
def test_every_conversation_has_one_start_and_end_for_each_turn(messages: list[dict[str, Any]]) -> None:
    encoded = TOKENIZER.encode_chat(messages)
    assert encoded.count(IM_START) == len(messages) + 1
    assert encoded.count(IM_END) == len(messages)
    for message in messages:
        assert bytes(message["content"], "utf-8") in bytes(token for token in encoded if token < 256)


def test_it_takes_another_template() -> None:
    other: Tokenizer = TOKENIZER.with_chat_template("{{ messages[0].content }}{{ eos_token }}")
    assert other.encode_chat([{"content": "x"}]) == [*b"x", IM_END]
