"""What each builder accepts and what texts its grammar then allows; what is refused, quickly and in our own words."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from kvik.errors import InvalidRequestError
from kvik.request import SamplingParams
from kvik.text import grammar
from kvik.text.byte_tokenizer import byte_tokenizer
from kvik.text.matcher import GrammarVocabulary

VOCABULARY = GrammarVocabulary(byte_tokenizer(), 259)


def follows(made: str, text: str) -> bool:
    """Whether a text is one that the grammar allows, from beginning to end."""
    matcher = VOCABULARY.compile(made)
    row = VOCABULARY.new_row()
    for byte in text.encode():
        matcher.mask_into(row)
        if not int(row[byte // 32]) >> byte % 32 & 1:
            return False
        matcher.advance([byte])
    return matcher.mask_into(row)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
SCHEMAS: list[tuple[Any, list[str], list[str]]] = [
    (PERSON, ['{"name":"Ann"}', '{ "name": "Ann", "age": 3 }', '{\n  "name": "Ünï"\n}'], ['{"age":3}', "{}", "[]"]),
    (json.dumps(PERSON), ['{"name":"Ann"}'], ['{"name":"Annabel"}']),
    (True, ["1", '{"a":[null]}'], ["", "nul", "{a:1}"]),
    ({"enum": ["red", 5, None, {"a": [1]}]}, ['"red"', "5", "null", '{"a":[1]}'], ["6", '"re"', '"blue"']),
    ({"const": "a\nb"}, ['"a\\nb"'], ['"a\nb"', '"ab"']),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, ["[true]"], ["[]", "[1]"]),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["-12", "null"], ["1.5"]),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["3", '"3"'], ["true"]),
    ({"type": "string", "pattern": "^[a-c]{2}$"}, ['"ab"'], ['"abc"', '"xy"']),
    ({"type": "string", "format": "date"}, ['"2026-11-21"'], ['"21.11.2026"']),
    ({"type": "number", "multipleOf": 0.5, "maximum": 2}, ["1.5", "-0.5"], ["2.5", "0.3"]),
    (
        {"$defs": {"a/b": {"type": "array", "items": {"$ref": "#/$defs/a~1b"}}}, "$ref": "#/$defs/a~1b"},
        ["[]", "[[],[[]]]"],
        ["[1]"],
    ),
    ({"allOf": [{"properties": {"a": {"type": "integer"}}}, PERSON]}, ['{"name":"A"}'], ['{"a":1,"name":"A"}']),
]


@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS, ids=lambda value: str(value)[:30])
def test_a_schema_allows_what_satisfies_it_and_nothing_else(schema: Any, good: list[str], bad: list[str]) -> None:
    made = grammar.json_schema(schema)
    assert [text for text in good if not follows(made, text)] == []
    assert [text for text in bad if follows(made, text)] == []


def test_a_json_object_is_any_object_and_nothing_else() -> None:
    made = grammar.json_object()
    assert follows(made, '{"a": [1, {"b": null}], "c": "x\\"y"}')
    assert not any(follows(made, text) for text in ("[]", '"a"', '{"a":}', "{} ", " {}"))


def test_space_between_the_parts_of_json_has_an_end() -> None:
    made = grammar.json_object()
    assert follows(made, '{\n\t\t"a": 1 }')
    assert not any(follows(made, "{" + space + '"a":1}') for space in ("  ", "\n\n", "\n" + " " * 25, "\r"))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"[a-z]+@[a-z]+\.com", ["a@b.com"], ["a@b.org", "x a@b.com"]),
        (r"^\d{3}/\d$", ["123/4"], ["12/4", "١٢٣/4"]),
        ('a\nb|"c"\\/', ["a\nb", '"c"/'], ["ab"]),
        ("(the|a)( (big|red)){0,2} fox", ["the big red fox", "a fox"], ["the fox "]),
        (r"[/\d]*", ["1/2", ""], ["a"]),
        ("ü.😀", ["üx😀"], ["u😀"]),
    ],
)
def test_a_regular_expression_is_for_the_whole_text(pattern: str, good: list[str], bad: list[str]) -> None:
    made = grammar.regex(pattern)
    assert [text for text in good if not follows(made, text)] == []
    assert [text for text in bad if follows(made, text)] == []


def test_a_choice_is_one_of_its_strings_whatever_they_hold() -> None:
    options = ["yes", "yes, but", 'a"b\\c', "new\nline", "del\x7f nul\x00", "naïve 😀", "/x/ // # %json <s>"]
    made = grammar.choice(options)
    assert [option for option in options if not follows(made, option)] == []
    assert not any(follows(made, text) for text in ("no", "ye", "yes, ", "yesyes", ""))


def test_a_grammar_may_hold_rules_expressions_and_schemas() -> None:
    made = grammar.lark(
        """
        // a sum of numbers, or an object
        start: sum | %json {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
        sum: NUMBER ("+" NUMBER)~1..3
        NUMBER: /[0-9]{1,3}/
        """
    )
    assert all(follows(made, text) for text in ("1+2", "1+2+3+456", '{"a":1}'))
    assert not any(follows(made, text) for text in ("1", "1+2+3+4+5", "1234+1", "{}"))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def wide(branches: int) -> dict[str, Any]:
    names = [[f"{tag}{i}" for i in range(branches)] for tag in "abcdef"]
    return {
        "type": "object",
        "allOf": [
            {"anyOf": [{"properties": {n: {"type": "integer"}}, "required": [n]} for n in each]} for each in names
        ],
    }


def circle() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"again": schema}
    return schema


def chain(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"next": {"$ref": f"#/$defs/{name}"}}}


def tree(depth: int) -> dict[str, Any]:
    defs: dict[str, Any] = {"d0": {"type": "object", "properties": {"x": {"type": "integer"}}}}
    for i in range(1, depth):
        both = {side: {"$ref": f"#/$defs/d{i - 1}"} for side in ("left", "right")}
        defs[f"d{i}"] = {"allOf": [{"properties": both}] * 2}
    return {"$defs": defs, "$ref": f"#/$defs/d{depth - 1}"}


BAD: dict[str, tuple[Callable[..., str], Any, str]] = {
    "number": (grammar.json_schema, 123, "123"),
    "false": (grammar.json_schema, False, "False"),
    "no json": (grammar.json_schema, '{"type":', "no JSON"),
    "a set": (grammar.json_schema, {"enum": {1, 2}}, "no JSON"),
    "nan": (grammar.json_schema, {"const": float("nan")}, "no JSON"),
    "5000 digits": (grammar.json_schema, {"const": 10**5000}, "no JSON"),
    "unknown type": (grammar.json_schema, {"type": "hiccup"}, "'hiccup'; expected one of array"),
    "type of a type": (grammar.json_schema, {"type": [["string"]]}, "has the type"),
    "schema in a list": (grammar.json_schema, {"anyOf": [3]}, "3 for a schema"),
    "not": (grammar.json_schema, {"items": {"not": {}}}, "uses not"),
    "unique": (grammar.json_schema, {"type": "array", "uniqueItems": True}, "uses uniqueItems"),
    "format": (grammar.json_schema, {"type": "string", "format": "zip"}, "the format 'zip'"),
    "$ref to itself": (grammar.json_schema, {"$ref": "#"}, "leads back to itself"),
    "$ref loop": (
        grammar.json_schema,
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
        "leads back to itself",
    ),
    "$ref nowhere": (grammar.json_schema, {"$ref": "#/$defs/x"}, "leads nowhere"),
    "$ref elsewhere": (grammar.json_schema, {"$ref": "https://example.org/s.json"}, "within the schema"),
    "10,000 deep": (grammar.json_schema, nested(10_000), "64 levels"),
    "10,000 deep as text": (grammar.json_schema, '{"items":' * 7000 + "true" + "}" * 7000, "70004 characters"),
    "10,000 brackets": (grammar.json_schema, "[" * 10_000, "nested too deeply"),
    "a circle": (grammar.json_schema, circle(), "64 levels"),
    "1 MB enum": (grammar.json_schema, {"enum": [f"{i:016}" for i in range(60_000)]}, "more than 10000 values"),
    "1 MB string": (grammar.json_schema, {"const": "x" * 10**6}, "characters; expected at most 65536"),
    "long string": (grammar.json_schema, {"const": "x" * 5000}, "of 5000 characters"),
    "many enum values": (grammar.json_schema, {"enum": list(range(2001))}, "enum of 2001"),
    "many properties": (grammar.json_schema, {"properties": {f"p{i}": True for i in range(257)}}, "257 properties"),
    "many branches": (grammar.json_schema, wide(4), "branches"),
    "tree of references": (grammar.json_schema, tree(14), "merges large schemas"),
    "two that hold themselves": (
        grammar.json_schema,
        {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": chain("a"), "b": chain("b")}},
        "contain themselves",
    ),
    "many states": (grammar.json_schema, {"type": "integer", "multipleOf": 1_000_003}, "multipleOf 1000003"),
    "overlapping oneOf": (
        grammar.json_schema,
        {"oneOf": [{"type": "integer", "minimum": 1}, {"type": "integer", "maximum": 5}]},
        "oneOf may overlap",
    ),
    "nothing satisfies it": (grammar.json_schema, {"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5)"),
    "names that may repeat": (grammar.json_schema, {"type": "object", "minProperties": 2}, "minProperties 2"),
    "repeat of a repeat": (grammar.regex, "(a+)+$", "(a+)+"),
    "open group": (grammar.regex, "(", "unclosed group"),
    "far count": (grammar.regex, ".{1,1000000000}", "counts to 1000000000"),
    "product of counts": (grammar.regex, "(a{1000}){1000}", "counts to 1000000"),
    "look ahead": (grammar.regex, "(?=a)b", "look-around"),
    "backreference": (grammar.regex, r"(a)\1", "backreferences"),
    "long expression": (grammar.regex, "ab" * 1001, "2002 characters"),
    "deep expression": (grammar.regex, "(" * 5000, "characters"),
    "nested expression": (grammar.regex, "(" * 40 + "a" + ")" * 40, "nests more than 32"),
    "many repeats": (grammar.regex, "a?" * 501, "more than 500 repeats"),
    "bytes": (grammar.regex, b"a", "bytes"),
    "half a pair": (grammar.regex, "\ud800", "surrogate"),
    "unknown rule": (grammar.lark, "start: foo", "foo"),
    "no start": (grammar.lark, 'begin: "a"', "start"),
    "complement": (grammar.lark, "start: A\nA: ~/a/", "uses ~"),
    "intersection": (grammar.lark, "start: A\nA: /a/ & /b/", "uses &"),
    "bad schema inside": (grammar.lark, 'start: %json {"type": "hiccup"}', "hiccup"),
    "no schema inside": (grammar.lark, "start: %json x", "no JSON after %json"),
    "bad expression inside": (grammar.lark, "start: /.{1,99999}/", "counts to 99999"),
    "far count of a rule": (grammar.lark, 'start: "a"~1..1000000', "counts to 1000000"),
    "far count in braces": (grammar.lark, 'start: a{5,1000000}\na: "a"', "counts to 1000000"),
    "deep grammar": (grammar.lark, "start: " + "(" * 10_000, "nests more than 32"),
    "long grammar": (grammar.lark, "start: a\n" * 10_000, "90000 characters"),
    "no choice": (grammar.choice, [], "list of 0"),
    "one string": (grammar.choice, "yes", "'yes'"),
    "empty choice": (grammar.choice, ["a", ""], "0 characters"),
    "number as choice": (grammar.choice, ["a", 1], "int"),
    "long choice": (grammar.choice, ["a" * 4097], "4097 characters"),
    "no list of grammars": (grammar.check, '{"a": 1}', "no list"),
    "too long for any": (grammar.check, "x" * (2**18 + 1), "262145 characters"),
    "no string": (grammar.check, None, "NoneType"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_promised_is_refused_in_our_own_words(case: str) -> None:
    build, argument, expected = BAD[case]
    with pytest.raises(InvalidRequestError) as refusal:
        build(argument, param="response_format")
    message = str(refusal.value)
    assert refusal.value.param == "response_format"
    assert expected in message
    assert len(message) < 300
    assert message.isprintable()


def test_refusals_take_no_time_worth_mentioning() -> None:
    for case, (build, argument, _) in BAD.items():
        seconds = []
        for _ in range(3):
            started = time.thread_time()
            with pytest.raises(InvalidRequestError):
                build(argument)
            seconds.append(time.thread_time() - started)
        assert min(seconds) < 0.05, case


def test_what_is_only_large_is_accepted() -> None:
    properties = {f"p{i}": {"type": "string", "maxLength": 100} for i in range(256)}
    grammar.json_schema({"type": "object", "properties": properties, "required": ["p0"]})
    grammar.json_schema(nested(31))
    grammar.json_schema({"enum": [f"value {i}" for i in range(2000)]})
    grammar.json_schema({"type": "string", "maxLength": 10**9})
    grammar.regex("(" * 30 + "a" + ")" * 30 + "[a-z]{0,9000}")
    grammar.choice([f"option number {i}" for i in range(2000)])


def test_options_inside_a_schema_do_not_loosen_it() -> None:
    loose = {"x-guidance": {"lenient": True, "whitespace_flexible": False}, "type": "object"}
    assert follows(grammar.json_schema(loose), "{ }")
    with pytest.raises(InvalidRequestError, match="oneOf"):
        grammar.json_schema({**loose, "oneOf": [{"minProperties": 1}, {"maxProperties": 1}]})


@pytest.mark.parametrize("value", [5, b"start", ["a"], "", "x" * (2**18 + 1)])
def test_sampling_params_take_a_string_of_some_length(value: Any) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        SamplingParams(grammar=value)
    assert refusal.value.param == "grammar"
    assert len(str(refusal.value)) < 120
