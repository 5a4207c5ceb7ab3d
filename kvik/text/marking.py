"""Telling a template's own special tokens from ones that a user spelled.

After rendering, `<|im_end|>` from the template and `<|im_end|>` from a message look the same. So every string a user
gives is marked before rendering: after each character that could begin a special token comes a *marker*, a character
that occurs nowhere else. A marked spelling is no longer that token, and none can be pieced together from several
strings, from a string and the template, or by a template that cuts something out of a string. The tokenizer removes
the markers once it has found the special tokens.

Left unmarked are the beginnings of ordinary added tokens (Qwen3's `<think>`, `<tool_call>`) and of strings that the
template itself looks for, so that it still finds them. Knows nothing of jinja or of encoding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kvik.errors import InvalidRequestError

MAX_DEPTH = 100
# Noncharacters first: Unicode promises that they never carry meaning. Then the supplementary private use planes.
_CANDIDATES = (range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
DEFAULT_MARKER = chr(0xFDD0)


def copied(value: Any, name: str, change: Callable[[str], str], depth: int = 0) -> Any:
    """A deep copy of JSON-like data with every string changed, keys included; the template sees nothing else.

    Raises InvalidRequestError naming the argument for other kinds of values and for nesting beyond 100.
    """
    if depth > MAX_DEPTH:
        raise InvalidRequestError(f"{name} is nested more than {MAX_DEPTH} deep", param=name)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return change(str(value))
    if isinstance(value, dict):
        return {copied(k, name, change, depth + 1): copied(v, name, change, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(item, name, change, depth + 1) for item in value]
    raise InvalidRequestError(f"{name} holds a {type(value).__name__}; expected plain JSON values", param=name)


def strings_of(value: Any) -> Iterator[str]:
    """Every string in JSON-like data, keys included."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            stack += item


def escaped(marker: str) -> str:
    """The marker as ASCII-only JSON spells it; a template may ask `tojson` for that."""
    return json.dumps(marker)[1:-1]


def choose_marker(texts: Iterable[str]) -> str:
    """A character that occurs in none of the texts, nor its JSON spelling. Raises InvalidRequestError."""
    joined = "\n".join(texts)
    for candidates in _CANDIDATES:
        for code in candidates:
            if chr(code) not in joined and escaped(chr(code)) not in joined:
                return chr(code)
    raise InvalidRequestError("messages use every private character of Unicode", param="messages")


class MarkingRule:
    """Where markers go, for one set of special tokens, ordinary added tokens and template strings."""

    def __init__(self, special: Iterable[str], ordinary: Iterable[str], literals: Iterable[str]) -> None:
        special = [token for token in special if token]
        firsts = "".join(sorted({re.escape(token[0]) for token in special}))
        if not firsts:
            self._pattern = None
            return
        first = re.compile(f"[{firsts}]")
        tails = {text[m.start() :] for text in (*ordinary, *literals) for m in first.finditer(text)}
        kept = sorted(tail for tail in tails if not self._overlaps(tail, special))
        ahead = f"(?!{'|'.join(map(re.escape, kept))})" if kept else ""
        self._pattern = re.compile(f"{ahead}([{firsts}])")

    @staticmethod
    def _overlaps(tail: str, special: list[str]) -> bool:
        """Whether text that begins like this could be, or become, a special token."""
        return any(tail.startswith(token) or token.startswith(tail) for token in special)

    def applies_to(self, text: str) -> bool:
        """Whether marking would change the text."""
        return self._pattern is not None and self._pattern.search(text) is not None

    def mark(self, text: str, marker: str) -> str:
        """The text with a marker after each character that could begin a special token."""
        return self._pattern.sub(lambda match: match[1] + marker, text) if self._pattern else text
