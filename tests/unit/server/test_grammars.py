"""From what a client asks for to a grammar: each kind accepts what it should and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from kvik.errors import InvalidRequestError
from kvik.server.grammars import grammar_of
from kvik.server.protocol.structure import Structure
from kvik.server.protocol.tool_choice import ToolRules

BYTES = LLTokenizer("byte")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOLS = (
    {"type": "function", "function": {"name": "add", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
OBJECT = '{"a": 1}'


def accepts(grammar: str, text: str) -> bool:
    """Whether a whole text follows a grammar."""
    matcher = LLMatcher(BYTES, grammar)
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def made(kind: str, payload: Any, thinking: Any = "none") -> str:
    return grammar_of(Structure(kind, payload, "the_field"), thinking)


@pytest.mark.parametrize(
    ("kind", "payload", "good", "bad"),
    [
        ("json_object", None, '{"x": [1]}', "[1]"),
        ("json_schema", SCHEMA, OBJECT, '{"a": "b"}'),
        ("regex", "[a-c]+", "abc", "abd"),
        ("grammar", 'start: "x" "y"', "xy", "x"),
        ("choice", ("yes", "no"), "no", "maybe"),
        ("tools", ToolRules(TOOLS, "required"), CALL, OBJECT),
        ("tools", ToolRules(TOOLS, "named", "now"), OTHER, CALL),
        ("tools", ToolRules(TOOLS, strict=frozenset(("add",))), "free text " + CALL, CALL.replace("1", '"b"')),
        ("tools", ToolRules(TOOLS, "required", parallel=False), CALL, f"{CALL}\n{OTHER}"),
    ],
)
def test_each_kind(kind: str, payload: Any, good: str, bad: str) -> None:
    grammar = made(kind, payload)
    assert accepts(grammar, good)
    assert not accepts(grammar, bad)


def test_tools_beside_an_answer_of_a_given_form() -> None:
    """Either calls, or the form: no free text."""
    rules = ToolRules(TOOLS, content=Structure("json_schema", SCHEMA, "response_format"))
    grammar = made("tools", rules)
    assert accepts(grammar, OBJECT)
    assert accepts(grammar, CALL)
    assert accepts(grammar, f"{CALL}\n{OTHER}")
    assert not accepts(grammar, "free text")
    assert not accepts(grammar, OBJECT + CALL)


@pytest.mark.parametrize(
    ("kind", "payload", "answer"),
    [("json_schema", SCHEMA, OBJECT), ("tools", ToolRules(TOOLS, "required"), CALL)],
)
def test_thoughts_come_before_whatever_was_asked_for(kind: str, payload: Any, answer: str) -> None:
    opened, may, none = (made(kind, payload, thinking) for thinking in ("opened", "may", "none"))
    assert accepts(opened, f"so be it</think>\n\n{answer}")
    assert not accepts(opened, answer)
    assert accepts(may, answer)
    assert accepts(may, f"<think>so be it</think>\n\n{answer}")
    assert accepts(none, answer)
    assert not accepts(none, f"<think>so be it</think>\n\n{answer}")


def test_thoughts_come_before_a_form_beside_tools() -> None:
    rules = ToolRules(TOOLS, content=Structure("json_object", None, "response_format"))
    grammar = made("tools", rules, "may")
    for answer in (OBJECT, CALL, f"<think>well</think>\n{CALL}"):
        assert accepts(grammar, answer)


@pytest.mark.parametrize(("kind", "payload"), [("json_schema", {"type": "hiccup"}), ("regex", "("), ("grammar", "x")])
def test_what_means_nothing_is_refused_by_the_name_of_its_field(kind: str, payload: Any) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        made(kind, payload)
    assert refused.value.param == "the_field"


def test_a_grammar_is_one_string_of_json_or_lark() -> None:
    assert json.loads(made("json_object", None))["grammars"]
