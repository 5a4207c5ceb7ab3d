"""Readers: how one value of a request is checked. A reader takes the value and its name and returns what it means.

Types are strict: "1" and true are no numbers, 1.0 is no whole number. Every refusal is a 400 that names the field, the
value and what was expected. Knows nothing of which field there is; a null never reaches a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from kvik.server.protocol.errors import ApiError, bad_request, shown

Reader = Callable[[Any, str], Any]

INT64 = 2**63
MAX_TOKEN_ID = 2**31 - 1


def expected(value: Any, param: str, what: str) -> ApiError:
    """The refusal of one value."""
    return bad_request(f"{param} is {shown(value)}; expected {what}", param)


def number(low: float, high: float, *, above: bool = False) -> Reader:
    """A number from `low` to `high`, or above `low`."""
    what = f"a number above {low:g} and at most {high:g}" if above else f"a number from {low:g} to {high:g}"

    def read(value: Any, param: str) -> float:
        if type(value) not in (int, float) or not low <= value <= high or (above and value == low):
            raise expected(value, param, what)
        return float(value)

    return read


def whole(low: int, high: int) -> Reader:
    """A whole number from `low` to `high`."""

    def read(value: Any, param: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise expected(value, param, f"a whole number from {low} to {high}")
        return value

    return read


def flag(value: Any, param: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise expected(value, param, "true or false")
    return value


def text(max_chars: int, *, empty: bool = True) -> Reader:
    """A string of limited length."""

    def read(value: Any, param: str) -> str:
        if not isinstance(value, str):
            raise expected(value, param, "a string")
        if not value and not empty:
            raise expected(value, param, "a string that is not empty")
        if len(value) > max_chars:
            raise bad_request(f"{param} has {len(value)} characters; expected at most {max_chars}", param)
        return value

    return read


def one_of(*names: str) -> Reader:
    """One of a few strings."""

    def read(value: Any, param: str) -> str:
        if not isinstance(value, str) or value not in names:
            raise expected(value, param, f"one of {', '.join(names)}")
        return value

    return read


def an_object(value: Any, param: str) -> dict[str, Any]:
    """Any JSON object."""
    if not isinstance(value, dict):
        raise expected(value, param, "an object")
    return value


def listed(value: Any, param: str, low: int, high: int, of: str) -> list[Any]:
    """A list of `low` to `high` items; the items are the caller's to check."""
    if not isinstance(value, list):
        raise expected(value, param, f"a list of {of}")
    if not low <= len(value) <= high:
        raise bad_request(f"{param} has {len(value)} items; expected {low} to {high}", param)
    return value


def strings(low: int, high: int, max_chars: int) -> Reader:
    """One non-empty string, or a list of them, as a tuple."""

    def read(value: Any, param: str) -> tuple[str, ...]:
        one = text(max_chars, empty=False)
        if isinstance(value, str):
            return (one(value, param),)
        return tuple(one(item, param) for item in listed(value, param, low, high, "strings"))

    return read


def are_token_ids(value: Collection[Any], end: int) -> bool:
    """Whether all items, of which there is at least one, are whole numbers from 0 to below `end`."""
    return set(map(type, value)) == {int} and min(value) >= 0 and max(value) < end


def token_ids(max_items: int) -> Reader:
    """A list of token ids as a tuple."""

    def read(value: Any, param: str) -> tuple[int, ...]:
        items = listed(value, param, 0, max_items, "token ids")
        if items and not are_token_ids(items, MAX_TOKEN_ID + 1):
            wrong = next(item for item in items if not are_token_ids([item], MAX_TOKEN_ID + 1))
            raise expected(wrong, param, "token ids, whole numbers of at least 0")
        return tuple(items)

    return read


def optional(body: dict[str, Any], name: str, reader: Reader, default: Any = None, path: str = "") -> Any:
    """One field of an object: missing and null are the default. `path` is where the object stands."""
    value = body.get(name)
    return default if value is None else reader(value, path + name)


def required(body: dict[str, Any], name: str, reader: Reader, path: str = "") -> Any:
    """One field that must be there."""
    value = body.get(name)
    if value is None:
        raise bad_request(f"{path + name} is missing", path + name)
    return reader(value, path + name)
