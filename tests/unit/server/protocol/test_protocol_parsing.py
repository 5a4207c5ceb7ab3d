"""Tool calls and reasoning in generated text: what is found, what is given back, and that no tag is ever shown."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_toys import pieces_of, reading, token_bytes

from kvik.server.protocol.answer import AnswerParser, Message, new_call_id
from kvik.server.protocol.reasoning import ReasoningCount, ReasoningSplitter, Thinking
from kvik.server.protocol.tool_calls import Delta, parse_call
from kvik.server.protocol.tool_choice import ToolRules

RULES = ToolRules(({"type": "function", "function": {"name": "f", "parameters": {}}},))
F1 = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def deltas(pieces: Sequence[str], rules: ToolRules | None = RULES, **options: Any) -> list[Delta]:
    parser = AnswerParser(rules, reading(**options))
    found = [delta for piece in pieces for delta in parser.push(piece)]
    return found + parser.finish()


def message(text: str, rules: ToolRules | None = RULES, **options: Any) -> dict[str, Any]:
    made = Message()
    for delta in deltas([text], rules, **options):
        made.add(delta)
    return made.as_dict()


def calls(text: str, **options: Any) -> list[tuple[str, str]]:
    found = message(text, **options).get("tool_calls", [])
    assert [call["id"] for call in found] == [f"call_{number}" for number in range(len(found))]
    return [(call["function"]["name"], call["function"]["arguments"]) for call in found]


@pytest.mark.parametrize(
    ("text", "content", "expected"),
    [
        ("Hi", "Hi", []),
        ("", "", []),
        (F1, None, [("f", '{"a": 1}')]),
        (f"Let me see.\n{F1}", "Let me see.", [("f", '{"a": 1}')]),
        (f"{F1}\n{F1.replace('1', '2')}\n", None, [("f", '{"a": 1}'), ("f", '{"a": 2}')]),
        (f"{F1} Done.", "Done.", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f"}</tool_call>', None, [("f", "{}")]),
        ('<tool_call>{"arguments": {}, "name": "f", "id": 7}</tool_call>', None, [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>', None,
         [("f", '{"a": "</tool_call>"}')]),
        ('<tool_call>{"name": "f", "arguments": {"a": "\\"}<tool_call>{"}}</tool_call>', None,
         [("f", '{"a": "\\"}<tool_call>{"}')]),
        ('<tool_call>\n{"name": "é", "arguments": {"ü": "😀"}}', None, [("é", '{"ü": "😀"}')]),
        ('<tool_call>\n{"name": "f"}\n</tool_ca', None, [("f", "{}")]),
    ],
)  # fmt: skip
def test_calls_and_the_content_beside_them(text: str, content: str | None, expected: list[tuple[str, str]]) -> None:
    assert message(text)["content"] == content
    assert calls(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nno json\n</tool_call>",
        "x\n\n<tool_call>\n{not json}\n</tool_call> y",
        '<tool_call>{"name": "f", "arguments": {"a": }}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        '<tool_call>{"name": 7}</tool_call>',
        '<tool_call>{"name": ""}</tool_call>',
        "<tool_call>{}</tool_call>",
        "<tool_call>[]</tool_call>",
        '<tool_call>{"name": "f"}}</tool_call>',
        '<tool_call>{"name": "f"} x </tool_call>',
        '<tool_call>{"name": "f\n"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1}',
        "<tool_call>",
        "a <tool_cal",
        "</tool_call>",
        "<tool_call><tool_call>",
        "1 < 2 <t\n\n",
    ],
)
def test_what_is_no_call_is_given_back_as_it_was(text: str) -> None:
    for pieces in ([text], list(text)):
        found = deltas(pieces)
        assert "".join(delta["content"] for delta in found) == text
    assert calls(text) == []


def test_a_call_after_a_broken_one_is_found() -> None:
    broken = '<tool_call>{"name": }</tool_call>'
    assert message(broken + F1)["content"] == broken
    assert calls(broken + F1) == [("f", '{"a": 1}')]


def test_a_call_begins_with_its_name_and_goes_on_with_arguments() -> None:
    assert deltas([F1[:20], F1[20:]]) == [
        {"tool_calls": [{"index": 0, "id": "call_0", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1}'}}]},
    ]


def test_arguments_flow_where_a_grammar_makes_them_certain() -> None:
    parser = AnswerParser(RULES, reading(certain_calls=True))
    shown = [[delta["tool_calls"][0]["function"]["arguments"] for delta in parser.push(piece)] for piece in F1]
    assert "".join(piece for pieces in shown for piece in pieces) == '{"a": 1}'
    assert shown[F1.index(': {"a"') + 2] == ["", "{"]
    assert shown[F1.index("1")] == ["1"]
    assert shown[F1.index("\n</tool_call>") - 1] == []
    assert parser.calls


def test_a_certain_call_that_is_cut_off_keeps_what_it_has() -> None:
    assert calls('<tool_call>{"name": "f", "arguments": {"a": "lo', certain_calls=True) == [("f", '{"a": "lo')]


def test_one_call_only_where_no_others_are_wanted() -> None:
    one = ToolRules(RULES.tools, parallel=False)
    assert len(message(f"{F1}\n{F1}", one)["tool_calls"]) == 1
    assert len(message(f"{F1}\n{F1}", one, certain_calls=True)["tool_calls"]) == 1


def test_without_tools_nothing_is_looked_for() -> None:
    assert message(F1, None)["content"] == F1
    assert "tool_calls" not in message(F1, None)


NAMES = st.text("abcdefgh_-", min_size=1, max_size=8)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda s: st.lists(s, max_size=3))
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(st.text(max_size=5), JSON, max_size=3)), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(content=st.text("ab<{ \n\"'é", max_size=12), wanted=CALLS, seed=st.integers(0, 2**32), certain=st.booleans())
def test_any_calls_come_back_and_nothing_of_a_tag_is_shown(
    content: str, wanted: list[tuple[str, dict[str, Any]]], seed: int, certain: bool
) -> None:
    blocks = [f"<tool_call>\n{json.dumps({'name': n, 'arguments': a})}\n</tool_call>" for n, a in wanted]
    pieces = pieces_of(content + "\n" + "\n".join(blocks), random.Random(seed))
    made = Message()
    for delta in deltas(pieces, certain_calls=certain):
        assert "<tool_call" not in delta.get("content", "")
        made.add(delta)
    found = made.as_dict()
    assert (found["content"] or "") == content.rstrip("\n")
    got = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found["tool_calls"]]
    assert got == wanted


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("<think>\nhm\n</think>\n\nHi", False, "hm", "Hi"),
        ("<think>hm</think>Hi", False, "hm", "Hi"),
        (" \n<think>hm</think>\nHi\n", False, "hm", "Hi\n"),
        ("<think>\n\n</think>\n\nHi", False, "", "Hi"),
        ("hm\n</think>\n\nHi", True, "hm", "Hi"),
        ("\nhm", True, "hm", ""),
        ("<think>a\n\nb\n", False, "a\n\nb\n", ""),
        ("<think>a < b </thin", False, "a < b </thin", ""),
        ("Hi <think>hm</think>", False, "", "Hi <think>hm</think>"),
        ("\n<thin", False, "", "\n<thin"),
        ("<think>a</think>b</think>c", False, "a", "b</think>c"),
        ("", False, "", ""),
    ],
)
def test_reasoning_and_content(text: str, opened: bool, reasoning: str, content: str) -> None:
    for pieces in ([text], list(text)):
        splitter = ReasoningSplitter(Thinking(opened=opened))
        found = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
        assert "".join(piece for side, piece in found if side == "reasoning") == reasoning
        assert "".join(piece for side, piece in found if side == "content") == content
        assert all(piece for _, piece in found)
        assert splitter.began == (opened or text.lstrip().startswith("<think>"))


def test_whether_the_prompt_has_opened_the_thoughts() -> None:
    assert Thinking.after("<|im_start|>assistant\n<think>\n").opened
    assert not Thinking.after("<|im_start|>assistant\n").opened
    assert not Thinking.after("<think>\n\n</think>\n\n").opened


def test_calls_are_not_looked_for_in_thoughts() -> None:
    found = message(f"<think>{F1}</think>\n{F1}", thinking=Thinking())
    assert found["reasoning_content"] == F1
    assert (found["content"], len(found["tool_calls"])) == (None, 1)


@pytest.mark.parametrize(
    ("text", "expected"), [("<think>hm</think>Hi", 17), ("<think>hm", 9), ("</think>", 8), ("", 0), ("Hi</thin", 8)]
)
def test_reasoning_tokens_end_with_the_closing_tag(text: str, expected: int) -> None:
    for size in (1, 3, 100):
        count = ReasoningCount(Thinking(), token_bytes)
        for start in range(0, len(text), size):
            count.push(list(text[start : start + size].encode()))
        assert count.num_tokens == expected


def test_a_message_without_content_is_null_only_beside_calls() -> None:
    assert message("<think>hm", None, thinking=Thinking()) == {
        "role": "assistant",
        "content": "",
        "refusal": None,
        "reasoning_content": "hm",
    }


def test_calls_have_names_of_their_own() -> None:
    names = {new_call_id() for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("call_") for name in names)


def test_arguments_are_what_the_model_wrote() -> None:
    assert parse_call(' {"arguments" : {"a":  1.0} , "name":"f"} ') == ("f", '{"a":  1.0}')
    assert parse_call('{"name": "f", "arguments": {"a": 1e999}}') is not None
    assert parse_call('{"name": "\\ud800"}') is None


@pytest.mark.parametrize(
    "unit",
    ["<tool_call>", '<tool_call>{"', '<tool_call>{",', "<tool_call>{[", F1 + "\n", "<think>", "</think>\n", "\n", "<"],
)
@pytest.mark.parametrize("certain", [False, True])
def test_a_long_answer_full_of_tags_takes_no_long_time(unit: str, certain: bool) -> None:
    text = "<think>a</think>" + unit * (400_000 // len(unit))
    started = time.process_time()
    found = message(text, thinking=Thinking(), certain_calls=certain)
    assert time.process_time() - started < 5
    assert len(found.get("tool_calls", ())) == text.count(F1)


def test_a_call_with_long_arguments() -> None:
    arguments = json.dumps({"text": "é\n\"'" * 100_000}, ensure_ascii=False)
    assert calls(f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>') == [("f", arguments)]
