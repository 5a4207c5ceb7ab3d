"""The tools of a chat request, and which of them the model may, must or must not call.

`none` leaves the tools out of the prompt and of everything that follows. Only functions are tools here. Knows nothing
of how a model spells a call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from kvik.server.protocol.errors import bad_request
from kvik.server.protocol.readers import an_object, expected, flag, listed, one_of, optional, required, text
from kvik.server.protocol.structure import Structure, check_schema

MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 2**16
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
ANY_OBJECT: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class ToolRules:
    """What an answer may call."""

    tools: tuple[dict[str, Any], ...]
    """As templates expect them: type, and function with name, parameters and, if given, description."""
    choice: str = "auto"
    """auto: may call; required: must call at least one; named: must call `name`."""
    name: str | None = None
    parallel: bool = True
    """Whether one answer may hold several calls."""
    strict: frozenset[str] = frozenset()
    """Names of the tools whose arguments must follow their parameters."""
    content: Structure | None = None
    """What the text must be if nothing is called; only with auto."""

    def structure(self, content: Structure | None) -> Structure | None:
        """The constraint on an answer that may call these tools, or else has to be `content`. None: free text, in
        which calls may occur.
        """
        if self.choice != "auto":
            return Structure("tools", self, "tool_choice")
        if self.strict or content is not None:
            return Structure("tools", replace(self, content=content), content.param if content else "tools")
        return None


def _name(value: Any, param: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise expected(value, param, "1 to 64 letters, digits, underscores and dashes")
    return value


def _tool(tool: Any, param: str) -> tuple[dict[str, Any], bool]:
    """A tool as templates expect it, and whether it is strict."""
    required(an_object(tool, param), "type", one_of("function"), f"{param}.")
    path = f"{param}.function."
    function = required(tool, "function", an_object, f"{param}.")
    kept = {"name": required(function, "name", _name, path)}
    description = optional(function, "description", text(MAX_DESCRIPTION_CHARS), path=path)
    if description is not None:
        kept["description"] = description
    kept["parameters"] = optional(function, "parameters", check_schema, ANY_OBJECT, path)
    return {"type": "function", "function": kept}, optional(function, "strict", flag, False, path)


def _read_tools(value: Any, param: str) -> ToolRules | None:
    items = listed(value, param, 0, MAX_TOOLS, "tools")
    read = [_tool(item, f"{param}[{index}]") for index, item in enumerate(items)]
    names = [tool["function"]["name"] for tool, _ in read]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise bad_request(f"{param} has two tools named {name!r}", f"{param}[{index}].function.name")
    strict = frozenset(tool["function"]["name"] for tool, is_strict in read if is_strict)
    return ToolRules(tuple(tool for tool, _ in read), strict=strict) if read else None


def _read_choice(value: Any, param: str) -> tuple[str, str | None]:
    """The kind of choice, and the tool that it names."""
    if not isinstance(value, dict):
        if value not in ("none", "auto", "required"):
            raise expected(value, param, "none, auto, required or an object that names a function")
        return value, None
    required(value, "type", one_of("function"), f"{param}.")
    function = required(value, "function", an_object, f"{param}.")
    return "named", required(function, "name", _name, f"{param}.function.")


def read_tools(body: dict[str, Any]) -> ToolRules | None:
    """The tools that may be called; None if there are none or the choice is `none`. Raises ApiError."""
    rules = optional(body, "tools", _read_tools)
    choice, name = optional(body, "tool_choice", _read_choice, ("auto", None))
    parallel = optional(body, "parallel_tool_calls", flag, True)
    if rules is None:
        if choice in ("required", "named"):
            raise bad_request(f"tool_choice is {choice}, but there are no tools", "tool_choice")
        return None
    if choice == "none":
        return None
    if name is not None and all(tool["function"]["name"] != name for tool in rules.tools):
        raise bad_request(f"tool_choice names {name!r}, which is none of the tools", "tool_choice")
    found: ToolRules = replace(rules, choice=choice, name=name, parallel=parallel)
    return found
