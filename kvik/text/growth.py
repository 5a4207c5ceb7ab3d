"""Operations that can make large values out of small ones, each measured before it is done.

They replace jinja's filters and operators of the same names in the sandbox, so that no value in a template is ever
longer than MAX_CHARS or has more than MAX_NODES members. Knows nothing of jinja's machinery or of time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from jinja2.filters import FILTERS

from kvik.errors import TemplateError

MAX_CHARS = 8 * 2**20
"""Longest string a template may make, its output included."""
MAX_NODES = 200_000
"""Most members a list or dict may have, nested ones counted as often as they would be printed."""
MAX_INT_BITS = 4096


def check_chars(count: int) -> None:
    """Raises TemplateError for a text that would be too long."""
    if count > MAX_CHARS:
        raise TemplateError(f"the chat template makes a text of {count} characters; the limit is {MAX_CHARS}")


def check_members(count: int) -> None:
    """Raises TemplateError for a list or dict that would be too large."""
    if count > MAX_NODES:
        raise TemplateError(f"the chat template makes a value of more than {MAX_NODES} members")


def measure(value: Any, times: int = 1) -> int:
    """Members of a nested value as it would be printed `times` over. Raises TemplateError where that is too much.

    Values that share members form a graph whose printed form can be exponentially larger than the memory it takes;
    the walk counts every visit and stops at the limit.
    """
    count, chars, stack = 0, 0, [value]
    while stack:
        item = stack.pop()
        count += 1
        if isinstance(item, str):
            chars += len(item)
        elif isinstance(item, dict):
            stack += item.keys()
            stack += item.values()
        elif isinstance(item, (list, tuple)):
            stack += item
        check_members((count + len(stack)) * times)
        check_chars(chars * times)
    return count


def text_of(value: Any) -> str:
    """str(value), refused where it would be too long."""
    if not isinstance(value, str):
        measure(value)
    return str(value)


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    """`str.replace`, if the result is short enough."""
    found = text.count(old) if count < 0 else min(text.count(old), count)
    check_chars(len(text) + found * (len(new) - len(old)))
    return text.replace(old, new, count)


def repeat(left: Any, right: Any) -> Any:
    """`left * right`, if the result is small enough."""
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str) and isinstance(times, int):
            check_chars(len(value) * times)
        elif isinstance(value, (list, tuple)) and isinstance(times, int):
            measure(value, max(times, 1))
    return left * right


def add(left: Any, right: Any) -> Any:
    """`left + right`, if the result is small enough."""
    if isinstance(left, str) and isinstance(right, str):
        check_chars(len(left) + len(right))
    elif isinstance(left, (list, tuple)):
        measure([left, right])
    return left + right


def power(left: Any, right: Any) -> Any:
    """`left ** right`, if the result is small enough."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > MAX_INT_BITS:
        raise TemplateError(f"the chat template computes a number of more than {MAX_INT_BITS} bits")
    return left**right


def check_format(form: str, holes: int, values: Iterable[Any]) -> None:
    """Refuse widths in a format string that pad without bound, and results that are too long."""
    if re.search(r"\d{4}|\{[^{}]*\{|%[^%a-zA-Z]*\*", form):
        raise TemplateError("the chat template formats with a width of more than 3 digits or a computed one")
    longest = max((len(text_of(value)) for value in values), default=0)
    check_chars(len(form) + holes * (longest + 1000))


def modulo(left: Any, right: Any) -> Any:
    """`left % right`, formatting included, if the result is short enough."""
    if isinstance(left, str):
        values = right.values() if isinstance(right, dict) else right if isinstance(right, tuple) else (right,)
        check_format(left, left.count("%"), values)
    return left % right


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face templates expect it: characters as they are, nothing escaped for HTML."""
    measure(value)
    if (isinstance(indent, int) and indent > 16) or len(str(separators)) > 40:
        raise TemplateError("the chat template asks tojson for an indent of more than 16 or for long separators")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """Jinja's `indent`, by a sane width."""
    if len(str(width)) > 100 or (isinstance(width, int) and width > 100):
        raise TemplateError(f"the chat template indents by {width}; the limit is 100")
    indented: str = FILTERS["indent"](text, width, first, blank)
    return indented


def sum_numbers(values: Iterable[Any], start: float = 0) -> Any:
    """Python's `sum`, of numbers only: adding lists up copies them again and again."""
    if not isinstance(start, (int, float)):
        raise TemplateError("the chat template sums something other than numbers")
    return sum(values, start)
