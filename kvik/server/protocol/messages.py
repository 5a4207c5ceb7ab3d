"""The messages of a conversation, from any form the API allows to the one that chat templates expect.

Out come plain objects: content is one string (text parts joined by a newline), `developer` is `system`, `function` is
`tool`, and the arguments of earlier calls are objects. A conversation may end with any role. Images, audio and files
are refused by name. Text that spells a special token is text; the tokenizer sees to that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from kvik.server.protocol.errors import bad_request
from kvik.server.protocol.readers import an_object, expected, listed, one_of, optional, required, text

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_CALLS = 128
ANY_LENGTH = 2**62

Message = dict[str, Any]


def _part(part: Any, param: str, allowed: tuple[str, ...]) -> str:
    kind = required(an_object(part, param), "type", text(64), f"{param}.")
    if kind not in allowed:
        raise bad_request(
            f"{param}.type is a part that this model cannot read here; expected {' or '.join(allowed)}", f"{param}.type"
        )
    read: str = required(part, kind, text(ANY_LENGTH), f"{param}.")
    return read


def _text(allowed: tuple[str, ...] = ("text",)) -> Callable[[Any, str], str]:
    """A reader of content: a string, or a list of parts of the kinds allowed."""

    def read(value: Any, param: str) -> str:
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise expected(value, param, "a string or a list of parts")
        parts = listed(value, param, 1, MAX_PARTS, "parts")
        return "\n".join(_part(part, f"{param}[{index}]", allowed) for index, part in enumerate(parts))

    return read


def _arguments(value: Any, param: str) -> Any:
    """Arguments as an object where they are one; as text where a model once wrote something else."""
    if isinstance(value, dict):
        return value
    written = text(ANY_LENGTH)(value, param)
    try:
        read = msgspec.json.decode(written or "{}")
    except (msgspec.DecodeError, RecursionError):
        return written
    return read if isinstance(read, dict) else written


def _function(value: dict[str, Any], param: str) -> Message:
    name = required(value, "name", text(256, empty=False), f"{param}.")
    return {"name": name, "arguments": required(value, "arguments", _arguments, f"{param}.")}


def _call(value: Any, param: str) -> Message:
    required(an_object(value, param), "type", one_of("function"), f"{param}.")
    call_id = required(value, "id", text(256), f"{param}.")
    function = required(value, "function", an_object, f"{param}.")
    return {"id": call_id, "type": "function", "function": _function(function, f"{param}.function")}


def _calls(value: Any, param: str) -> list[Message]:
    items = listed(value, param, 0, MAX_CALLS, "calls")
    return [_call(item, f"{param}[{index}]") for index, item in enumerate(items)]


def _plain(role: str) -> Callable[[Message, str], Message]:
    def read(message: Message, path: str) -> Message:
        return {"role": role, "content": required(message, "content", _text(), path)}

    return read


def _assistant(message: Message, path: str) -> Message:
    if message.get("audio") is not None:
        raise bad_request(f"{path}audio is not supported; this model reads text", f"{path}audio")
    calls = optional(message, "tool_calls", _calls, [], path)
    old_call = optional(message, "function_call", an_object, path=path)
    if old_call is not None:
        calls = [*calls, {"id": "", "type": "function", "function": _function(old_call, f"{path}function_call")}]
    refusal = optional(message, "refusal", text(ANY_LENGTH), path=path)
    content = optional(message, "content", _text(("text", "refusal")), refusal, path)
    if content is None and not calls:
        raise bad_request(f"{path}content is missing; expected it, or tool_calls", f"{path}content")
    read = {"role": "assistant", "content": content or ""}
    reasoning = optional(message, "reasoning_content", text(ANY_LENGTH), path=path)
    return read | ({"reasoning_content": reasoning} if reasoning else {}) | ({"tool_calls": calls} if calls else {})


def _tool(message: Message, path: str) -> Message:
    call_id = required(message, "tool_call_id", text(256), path)
    return {"role": "tool", "tool_call_id": call_id, "content": required(message, "content", _text(), path)}


ROLES: dict[str, Callable[[Message, str], Message]] = {
    "system": _plain("system"),
    "developer": _plain("system"),
    "user": _plain("user"),
    "assistant": _assistant,
    "tool": _tool,
    "function": _plain("tool"),
}


def _message(value: Any, param: str) -> Message:
    path = f"{param}."
    role = required(an_object(value, param), "role", one_of(*ROLES), path)
    message = ROLES[role](value, path)
    name = optional(value, "name", text(256), path=path)
    return message | {"name": name} if name else message


def read_messages(body: dict[str, Any]) -> list[Message]:
    """The conversation of a chat request. Raises ApiError naming the place, such as `messages[2].content`."""

    def read(value: Any, param: str) -> list[Message]:
        items = listed(value, param, 1, MAX_MESSAGES, "messages")
        return [_message(item, f"{param}[{index}]") for index, item in enumerate(items)]

    messages: list[Message] = required(body, "messages", read)
    return messages
