"""A conversation as the prompt of a chat: what is needed to render it through a template, checked.

Shared by chat completions and by /tokenize, so that both make the same token ids of the same fields. Knows nothing of
templates themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvik.server.protocol.errors import bad_request, shown
from kvik.server.protocol.messages import Message, read_messages
from kvik.server.protocol.readers import an_object, flag, one_of, optional
from kvik.server.protocol.terms import Terms, too_long
from kvik.server.protocol.tool_choice import ToolRules, read_tools
from kvik.text.marking import strings_of

FIELDS = (
    *("messages", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs", "reasoning_effort"),
    *("add_generation_prompt", "continue_final_message"),
)
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
MAX_VARIABLES = 32
RESERVED = frozenset(("self", "messages", "tools", "add_generation_prompt"))
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Conversation:
    """The arguments of `Tokenizer.encode_chat`, and what becomes of its result."""

    messages: list[Message]
    rules: ToolRules | None = None
    """The tools that may be called."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """The template's variables, such as `enable_thinking`."""
    add_generation_prompt: bool = True
    """Open an answer after the last message, whoever's it is."""
    continue_final_message: bool = False
    """The answer goes on where the last message, the assistant's, ends; see final_message.py."""

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The tools as templates expect them; None if there are none to call."""
        return list(self.rules.tools) if self.rules else None


def read_conversation(body: dict[str, Any], terms: Terms) -> Conversation:
    """The conversation in a body. Raises ApiError."""
    messages = read_messages(body)
    rules = read_tools(body)
    chars = sum(map(len, strings_of([messages, list(rules.tools) if rules else []])))
    if chars > terms.max_text_chars:
        what = "messages and tools" if rules else "messages"
        raise too_long(f"{what} have", chars, terms, "messages")
    add_prompt, go_on = _read_ending(body, messages)
    return Conversation(messages, rules, _read_variables(body), add_prompt, go_on)


def _read_ending(body: dict[str, Any], messages: list[Message]) -> tuple[bool, bool]:
    """Whether the prompt opens an answer, and whether it goes on with the last message instead."""
    go_on = optional(body, "continue_final_message", flag, False)
    add_prompt = optional(body, "add_generation_prompt", flag, not go_on)
    if go_on and add_prompt:
        raise bad_request(
            "continue_final_message and add_generation_prompt are both true; expected one", "continue_final_message"
        )
    last = messages[-1]
    if go_on and (last["role"] != "assistant" or not last["content"].strip() or "tool_calls" in last):
        raise bad_request(
            "continue_final_message needs a last message of the assistant that is text", "continue_final_message"
        )
    return add_prompt, go_on


def _read_variables(body: dict[str, Any]) -> dict[str, Any]:
    """Variables for the template: the client's own, and what it says about reasoning."""
    given = optional(body, "chat_template_kwargs", an_object, {})
    if len(given) > MAX_VARIABLES:
        raise bad_request(
            f"chat_template_kwargs has {len(given)} entries; expected at most {MAX_VARIABLES}", "chat_template_kwargs"
        )
    wrong = next((name for name in given if not _VARIABLE.fullmatch(name) or name in RESERVED), None)
    if wrong is not None:
        raise bad_request(
            f"chat_template_kwargs names {shown(wrong)}; expected names of variables other than "
            f"{', '.join(sorted(RESERVED))}",
            "chat_template_kwargs",
        )
    effort = optional(body, "reasoning_effort", one_of(*EFFORTS))
    implied = {} if effort is None else {"reasoning_effort": effort}
    if effort == "none":
        implied["enable_thinking"] = False
    return {**implied, **given}
