"""Grammars of what clients ask for: from a `Structure` to the string that an engine takes.

A model that thinks does so before whatever it was asked for. Imported beside everything else once the model is ready,
because the library behind it takes a while. Knows nothing of HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kvik.server.protocol.structure import Structure
from kvik.server.protocol.tool_choice import ToolRules
from kvik.text import grammar
from kvik.text.tool_grammar import Thinking, after_thinking, tool_calls

_MAKERS: dict[str, Callable[[Any, str], str]] = {
    "json_object": lambda payload, param: grammar.json_object(),
    "json_schema": lambda payload, param: grammar.json_schema(payload, param=param),
    "regex": lambda payload, param: grammar.regex(payload, param=param),
    "grammar": lambda payload, param: grammar.lark(payload, param=param),
    "choice": lambda payload, param: grammar.choice(payload, param=param),
}


def grammar_of(structure: Structure, thinking: Thinking = "none") -> str:
    """The grammar of a structure, compiled once to see that it can be. Raises InvalidRequestError."""
    if structure.kind == "tools":
        return _tools(structure.payload, thinking, structure.param)
    made = _MAKERS[structure.kind](structure.payload, structure.param)
    return after_thinking(made, thinking, param=structure.param)


def _tools(rules: ToolRules, thinking: Thinking, param: str) -> str:
    """Calls of tools; text beside them is free, or else of the form that was asked for."""
    tools = [_strictly(tool, rules) for tool in rules.tools]
    if rules.content is None:
        choice = rules.name or rules.choice
        return tool_calls(tools, choice, parallel=rules.parallel, thinking=thinking, param=param)
    calls = tool_calls(tools, "required", parallel=rules.parallel, param=param)
    return after_thinking(_either(calls, grammar_of(rules.content), param), thinking, param=param)


def _strictly(tool: dict[str, Any], rules: ToolRules) -> dict[str, Any]:
    """A tool that says itself whether its schema must be followed."""
    function = tool["function"]
    return {**tool, "function": {**function, "strict": function["name"] in rules.strict}}


def _either(first: str, second: str, param: str) -> str:
    """A text that follows one of two grammars. Raises InvalidRequestError."""
    parts = [_listed(each) for each in (first, second)]
    named = [{**part[0], "name": name} for part, name in zip(parts, ("first", "second"), strict=True)]
    rest = [each for part in parts for each in part[1:]]
    return grammar.check(
        json.dumps({"grammars": [{"lark_grammar": "start: @first | @second"}, *named, *rest]}), param=param
    )


def _listed(made: str) -> list[dict[str, Any]]:
    """The grammars in a string."""
    listed: list[dict[str, Any]] = json.loads(made)["grammars"] if made.startswith("{") else [{"lark_grammar": made}]
    return listed
