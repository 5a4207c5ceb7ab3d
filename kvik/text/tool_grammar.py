"""The grammar of answers that call tools, as Hermes and Qwen models write calls:

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Oslo"}}
    </tool_call>

Arguments satisfy the tool's schema; everything around them is spelled as the chat templates of these models spell it.
A call may follow text, and thoughts may come before either. This file knows nothing of conversations or of how calls
are read back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kvik.errors import InvalidRequestError
from kvik.text.grammar import check, prepared_schema, quoted

Thinking = Literal["none", "may", "opened"]
"""Whether thoughts between <think> and </think> come first: never, if the model likes, or, as the prompt has opened
them, certainly."""
MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_CALL = "<tool_call>"
_THINK = "<think>"
_THOUGHTS = {"may": r"<think>(?s:.*)<\/think>", "opened": r"(?s:.*)<\/think>"}


@dataclass(frozen=True)
class _Tool:
    name: str
    schema: dict[str, Any]


def tool_calls(
    tools: Sequence[Any],
    choice: str = "auto",
    *,
    parallel: bool = True,
    thinking: Thinking = "none",
    param: str = "tools",
) -> str:
    """An answer that calls these tools, which are given as OpenAI's API does: a function's name and parameters each.

    `choice` is auto (text, calls, or calls after text), required (calls only) or a tool's name (calls of that one);
    `parallel` allows several calls. A tool whose schema cannot be promised takes any JSON object, unless it is
    `strict`. Raises InvalidRequestError.
    """
    known = _read_tools(tools, param)
    if choice not in ("auto", "required"):
        known = [tool for tool in known if tool.name == choice]
        if not known:
            raise InvalidRequestError(
                f"tool_choice names {choice!r}; expected auto, required or the name of a tool", param="tool_choice"
            )
    rules = [_start(choice == "auto", parallel, thinking), *_call_rules(known)]
    arguments = [{"name": f"arguments_{i}", "json_schema": tool.schema} for i, tool in enumerate(known)]
    grammar = {"grammars": [{"lark_grammar": "\n".join(rules)}, *arguments]}
    return check(json.dumps(grammar, ensure_ascii=False), param=param)


def after_thinking(grammar: str, thinking: Thinking, *, param: str = "grammar") -> str:
    """Any other grammar, for a model that thinks before it answers. Raises InvalidRequestError."""
    if thinking == "none":
        return grammar
    listed = json.loads(grammar)["grammars"] if grammar.startswith("{") else [{"lark_grammar": grammar}]
    optional = "?" if thinking == "may" else ""
    rules = f"start: (thoughts GAP){optional} @answer\n{_thoughts(thinking)}"
    answer = [{"name": "answer", **listed[0]}, *listed[1:]]
    return check(json.dumps({"grammars": [{"lark_grammar": rules}, *answer]}, ensure_ascii=False), param=param)


def _start(auto: bool, parallel: bool, thinking: Thinking) -> str:
    """The rules for what surrounds the calls."""
    more = "(SEPARATOR call)*" if parallel else ""
    if auto:
        text = _not_beginning(_THINK) if thinking == "may" else "(?s:.*)"
        body = f"(TEXT | first rest {more})"
        rules = [f"TEXT: /{text}/", f"first[lazy]: /({text}){_CALL}/"]
    else:
        body, rules = f"(call {more})", []
    separator = [r'SEPARATOR: "\n"'] if parallel else []
    if thinking == "none":
        return "\n".join([f"start: {body}", *rules, *separator])
    optional, gap = "?" if thinking == "may" else "", "" if auto else " GAP"
    return "\n".join([f"start: (thoughts{gap}){optional} {body}", *rules, *separator, _thoughts(thinking)])


def _thoughts(thinking: Thinking) -> str:
    return f"thoughts[lazy]: /{_THOUGHTS[thinking]}/\nGAP: /\\n{{0,2}}/"


def _call_rules(tools: list[_Tool]) -> list[str]:
    functions = [f"{quoted(tool.name + _AFTER_NAME)} @arguments_{i}" for i, tool in enumerate(tools)]
    return [
        f"call: {quoted(_CALL)} rest",
        f"rest: {quoted(_BEFORE_NAME)} function {quoted(_AFTER_ARGUMENTS)}",
        f"function: {' | '.join(functions)}",
    ]


_BEFORE_NAME, _AFTER_NAME, _AFTER_ARGUMENTS = '\n{"name": "', '", "arguments": ', "}\n</tool_call>"


def _not_beginning(tag: str) -> str:
    """A regular expression for any text that does not begin with a tag."""
    starts = [re.escape(tag[:i]) for i in range(len(tag))]
    longer = [f"{start}[^{re.escape(char)}](?s:.*)" for start, char in zip(starts, tag, strict=True)]
    return "|".join([*starts, *longer])


def _read_tools(tools: Any, param: str) -> list[_Tool]:
    if isinstance(tools, str) or not isinstance(tools, Sequence) or not 0 < len(tools) <= MAX_TOOLS:
        raise InvalidRequestError(f"{param} is no list of 1 to {MAX_TOOLS} tools", param=param)
    known = [_read_tool(tool, f"{param}[{i}]", param) for i, tool in enumerate(tools)]
    if len({tool.name for tool in known}) < len(known):
        raise InvalidRequestError(f"{param} has two tools of one name; expected different names", param=param)
    return known


def _read_tool(tool: Any, where: str, param: str) -> _Tool:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        raise InvalidRequestError(f"{where} is no function; expected one with a name and parameters", param=param)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{where} has the name {str(name)[:80]!r}; expected 1 to 64 letters, digits, _, . and -", param=param
        )
    return _Tool(name, _arguments(function, where, param))


def _arguments(function: dict[str, Any], where: str, param: str) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object whatever it says."""
    given = function.get("parameters")
    if given is None:
        given = {"type": "object", "properties": {}, "additionalProperties": False}
    try:
        schema = prepared_schema(given, param)
        if schema.get("type") != "object":
            raise InvalidRequestError(f"{where} has parameters that are no object; expected type object", param=param)
        check(json.dumps({"grammars": [{"json_schema": schema}]}), param=param)
    except InvalidRequestError:
        if function.get("strict"):
            raise
        return prepared_schema({"type": "object"}, param)
    return schema
