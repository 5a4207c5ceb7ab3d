"""The body of a request, from bytes to a JSON object.

Refuses whatever is not one JSON object in UTF-8, and what would cost far more time or memory than its bytes: deep
nesting and great numbers of values (`effort.py`). NaN, infinities and numbers beyond a double are no JSON. Of equal
keys the last one wins. Knows nothing of which keys there are; how long a body may be is settled while it is read.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from kvik.server.protocol.effort import is_too_much
from kvik.server.protocol.errors import ApiError, bad_request

MAX_DEPTH = 256
SMALL = 2**16
"""Bytes that can hold no more values than are decoded in a moment."""

_MARKS = {b"\xef\xbb\xbf": "a byte order mark", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_CONTAINERS = frozenset((dict, list))
_POSITION = re.compile(r"\(byte (\d+)\)")


def decode_body(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises ApiError(400)."""
    if not body:
        raise bad_request("the body is empty; expected a JSON object")
    for mark, name in _MARKS.items():
        if body.startswith(mark):
            raise bad_request(f"the body begins with {name}; expected UTF-8 without a mark")
    if len(body) > SMALL and is_too_much(body):
        raise bad_request("the body holds more numbers, strings, lists and objects than are taken at a time")
    value = _decode(body)
    if not isinstance(value, dict):
        raise bad_request(f"the body is a JSON {_kind(value)}; expected a JSON object")
    _check_depth(value)
    return value


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except UnicodeDecodeError:
        raise bad_request("the body is not UTF-8") from None
    except RecursionError:
        raise _too_deep() from None
    except msgspec.ValidationError:
        raise bad_request("the body has a number out of range; expected what a double can hold") from None
    except msgspec.DecodeError as error:
        place = _POSITION.search(str(error))
        where = f" at byte {place[1]}" if place else ", or it ends too early"
        raise bad_request(f"the body is not valid JSON{where}") from None


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        items = [each.values() if type(each) is dict else each for each in level]
        level = [
            child
            for each in items
            if not _CONTAINERS.isdisjoint(map(type, each))
            for child in each
            if type(child) in _CONTAINERS
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ApiError:
    return bad_request(f"the body is nested more than {MAX_DEPTH} deep, which is the limit")


def _kind(value: Any) -> str:
    names: dict[type, str] = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
