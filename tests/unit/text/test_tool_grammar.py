"""Answers that call tools: which are allowed, with text or thoughts before them or not, and which tools are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvik.errors import InvalidRequestError
from kvik.text import grammar
from kvik.text.byte_tokenizer import byte_tokenizer
from kvik.text.matcher import GrammarVocabulary
from kvik.text.tokenizer import Tokenizer
from kvik.text.tool_grammar import after_thinking, tool_calls


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, **({"parameters": parameters} if parameters else {}), **more},
    }


CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
DEFINED = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
TOOLS = [tool("get_weather", CITY), tool("get", DEFINED), tool("ping")]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


WEATHER, GET, PING = call("get_weather", '{"city": "Oslo"}'), call("get", '{"n": 3}'), call("ping", "{}")
THOUGHTS = '<think>\nI could <tool_call> here {"name"\n</think>\n\n'
VOCABULARY = GrammarVocabulary(byte_tokenizer(), 259)


def follows(
    made: str, text: str, vocabulary: GrammarVocabulary = VOCABULARY, tokenizer: Tokenizer | None = None
) -> bool:
    """Whether a text is one that the grammar allows, from beginning to end."""
    matcher, row = vocabulary.compile(made), vocabulary.new_row()
    for token in tokenizer.encode(text, False) if tokenizer else text.encode():
        matcher.mask_into(row)
        if not int(row[token // 32]) >> token % 32 & 1:
            return False
        matcher.advance([token])
    return matcher.mask_into(row)


def test_required_calls_are_calls_and_nothing_else() -> None:
    made = tool_calls(TOOLS, "required")
    assert all(follows(made, text) for text in (WEATHER, GET, PING, f"{WEATHER}\n{GET}\n{PING}"))
    assert not any(
        follows(made, text) for text in ("", "Hello", f"So: {PING}", f"{PING} done", f"{PING}{PING}", PING[:-1])
    )


def test_arguments_satisfy_the_schema_of_the_tool_that_is_named() -> None:
    made = tool_calls(TOOLS, "required")
    wrong = [("get_weather", '{"days": 1}'), ("get", '{"n": "x"}'), ("ping", '{"a": 1}'), ("get", "[]"), ("gets", "{}")]
    assert not any(follows(made, call(*each)) for each in wrong)
    assert follows(made, call("get_weather", '{\n  "city": "}\\n</tool_call>", "days": -2\n}'))


def test_a_named_tool_is_the_only_one() -> None:
    made = tool_calls(TOOLS, "get")
    assert follows(made, GET)
    assert not follows(made, WEATHER)


def test_one_call_only_where_several_are_not_wanted() -> None:
    for choice in ("required", "auto"):
        made = tool_calls(TOOLS, choice, parallel=False)
        assert follows(made, PING)
        assert not follows(made, f"{PING}\n{PING}")


def test_auto_allows_text_calls_and_calls_after_text() -> None:
    made = tool_calls(TOOLS)
    good = ("", "Hello.", "1 < 2 <tool", "<think> no", "é\n", PING, f"I look.\n\n{WEATHER}\n{GET}", f"<tool {PING}")
    assert [text for text in good if not follows(made, text)] == []
    bad = (f"{PING} done", call("nothing", "{}"), "Use <tool_call>", f"a {call('get', '[]')}")
    assert [text for text in bad if follows(made, text)] == []


@pytest.mark.parametrize("choice", ["required", "auto", "get"])
def test_a_model_that_may_think_does_so_before_and_only_once(choice: str) -> None:
    made = tool_calls(TOOLS, choice, thinking="may")
    assert follows(made, GET)
    assert follows(made, THOUGHTS + GET)
    assert follows(made, THOUGHTS.strip() + GET)
    assert not follows(made, THOUGHTS[:-12] + GET)
    assert not follows(made, THOUGHTS + call("get", "[]"))
    assert follows(made, THOUGHTS + "Just text, <think> too") == (choice == "auto")
    assert follows(made, "<thin") == (choice == "auto")


@pytest.mark.parametrize("choice", ["required", "auto", "get"])
def test_thoughts_that_the_prompt_has_opened_must_be_closed(choice: str) -> None:
    made = tool_calls(TOOLS, choice, thinking="opened")
    assert follows(made, THOUGHTS[7:] + GET)
    assert not follows(made, GET)
    assert not follows(made, "Hello")


def test_any_grammar_may_come_after_thoughts() -> None:
    for made in (grammar.json_schema({"const": "a"}), 'start: "\\"a\\""', grammar.choice(['"a"'])):
        may, opened = after_thinking(made, "may"), after_thinking(made, "opened")
        assert after_thinking(made, "none") == made
        assert [follows(may, text) for text in ('"a"', THOUGHTS + '"a"', THOUGHTS, "b")] == [True, True, False, False]
        assert [follows(opened, text) for text in ('x</think>"a"', '</think>\n\n"a"', '"a"')] == [True, True, False]


def test_the_tag_may_be_one_token() -> None:
    path = Path("../shared/data/tokenizers/qwen3")
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    tokenizer = Tokenizer.from_directory(path)
    vocabulary = GrammarVocabulary(tokenizer, 151_936, tokenizer.eos_ids)
    made = tool_calls(TOOLS, thinking="may")
    assert len(tokenizer.encode("<tool_call>", False)) == 1
    for text in (PING, THOUGHTS + WEATHER, f"Let me see.\n{WEATHER}\n{GET}", "No call at all."):
        assert follows(made, text, vocabulary, tokenizer)
    assert not follows(made, call("get", "[]"), vocabulary, tokenizer)


def test_a_schema_that_cannot_be_promised_becomes_any_object_unless_it_is_strict() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    assert follows(tool_calls([tool("f", parameters)], "f"), call("f", '{"b": [1, 1]}'))
    with pytest.raises(InvalidRequestError, match="uniqueItems"):
        tool_calls([tool("f", parameters, strict=True)])


def test_arguments_are_an_object_whatever_the_schema_says() -> None:
    made = tool_calls([tool("f", {"type": "array"})], "f")
    assert follows(made, call("f", "{}"))
    assert not follows(made, call("f", "[]"))


@pytest.mark.parametrize(
    ("tools", "choice", "expected"),
    [
        ([], "auto", "no list"),
        ("tools", "auto", "no list"),
        ([tool(f"f{i}") for i in range(129)], "auto", "1 to 128"),
        ([3], "auto", r"tools\[0\] is no function"),
        ([{"type": "function", "function": 3}], "auto", "is no function"),
        ([tool("ok"), tool("two words")], "auto", r"tools\[1\] has the name 'two words'"),
        ([tool("x" * 65)], "auto", "1 to 64 letters"),
        ([tool('a"b')], "auto", "1 to 64 letters"),
        ([tool("same"), tool("same")], "auto", "two tools of one name"),
        ([tool("f", {"type": "array"}, strict=True)], "auto", "no object"),
        ([tool("f", 5, strict=True)], "auto", "the schema is 5"),
        ([tool("f")], "g", "tool_choice names 'g'"),
    ],
)
def test_tools_that_are_none_are_refused(tools: Any, choice: str, expected: str) -> None:
    with pytest.raises(InvalidRequestError, match=expected) as refusal:
        tool_calls(tools, choice)
    assert refusal.value.param == ("tool_choice" if choice == "g" else "tools")
