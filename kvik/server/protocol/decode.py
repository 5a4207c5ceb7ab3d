"""The body of a request, from bytes to a JSON object.

Refuses whatever is not one JSON object in UTF-8, and what would cost far more memory than it has bytes: deep nesting
and great numbers of containers. NaN, infinities and numbers beyond a double are no JSON. Of equal keys the last one
wins. Knows nothing of which keys there are; how long a body may be is settled while it is read.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from kvik.server.protocol.errors import ApiError, bad_request

MAX_DEPTH = 256
MAX_CONTAINERS = 200_000
"""An empty list takes 3 bytes on the wire and about 60 in memory; numbers and strings have no such ratio."""

_MARKS = {b"\xef\xbb\xbf": "a byte order mark", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_NO_BRACKET = bytes(set(range(256)) - set(b'"[{'))
_STRING = re.compile(rb'"[^"]*(?:"|\Z)')
_CONTAINERS = frozenset((dict, list))
_POSITION = re.compile(r"\(byte (\d+)\)")


def decode_body(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises ApiError(400)."""
    if not body:
        raise bad_request("the body is empty; expected a JSON object")
    for mark, name in _MARKS.items():
        if body.startswith(mark):
            raise bad_request(f"the body begins with {name}; expected UTF-8 without a mark")
    _check_containers(body)
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


def _check_containers(body: bytes) -> None:
    """Count before anything is allocated; brackets inside strings are let off only if there are many."""
    if body.count(b"{") + body.count(b"[") <= MAX_CONTAINERS:
        return
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_BRACKET)
    if len(_STRING.sub(b"", plain)) > MAX_CONTAINERS:
        raise bad_request(f"the body has more than {MAX_CONTAINERS} lists and objects, which is the limit")


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
