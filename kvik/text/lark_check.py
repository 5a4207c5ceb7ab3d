"""Bounds on grammars in lark's notation, read off their text before anything is compiled.

What is inside is held against the bounds of its own kind: regular expressions between slashes, schemas after `%json`.
Intersection and complement of terminals (`&`, `~`) are refused, as their tables have no bound. Whether a grammar means
anything is for the library that compiles it.
"""

from __future__ import annotations

import json
import re

from kvik.errors import InvalidRequestError
from kvik.text.regex_check import MAX_REGEX_COUNT, check_regex
from kvik.text.schema_check import MAX_LITERAL_CHARS, check_schema

MAX_LARK_CHARS = 65536
MAX_LARK_DEPTH = 32

_ITEM = re.compile(
    r"""(?P<comment>(?:\#|//)[^\n]*)
      | (?P<string>"(?:\\.|[^"\\\n])*")
      | (?P<regex>/(?:\\.|[^/\\])+/)
      | (?P<json>%(?:json|regex|llguidance)\b)
      | (?P<open>[(\[]) | (?P<close>[)\]])
      | \{\s*(?P<least>\d+)\s*(?:,\s*(?P<most>\d*)\s*)?\}
      | ~\s*(?P<low>\d+)(?:\s*\.\.\s*(?P<high>\d+))?
      | (?P<operator>[&~])
      | [\w-]+ | .""",
    re.VERBOSE | re.DOTALL,
)


def check_lark(text: str, param: str = "lark") -> None:
    """Hold a grammar against the bounds. Raises InvalidRequestError."""
    if len(text) > MAX_LARK_CHARS:
        raise InvalidRequestError(
            f"the grammar has {len(text)} characters; expected at most {MAX_LARK_CHARS}", param=param
        )
    place = depth = 0
    while (item := _ITEM.match(text, place)) is not None:
        place = item.end()
        depth += (item["open"] is not None) - (item["close"] is not None)
        if depth > MAX_LARK_DEPTH:
            raise InvalidRequestError(
                f"the grammar nests more than {MAX_LARK_DEPTH} brackets; expected fewer", param=param
            )
        if item["json"]:
            place = _check_data(item["json"], text, place, param)
        else:
            _check_item(item, param)


def _check_item(item: re.Match[str], param: str) -> None:
    if item["regex"]:
        check_regex(item["regex"][1:-1].replace("\\/", "/"), param)
    elif item["string"] and len(item["string"]) > MAX_LITERAL_CHARS + 2:
        raise InvalidRequestError(
            f"the grammar has a string of {len(item['string']) - 2} characters; expected at most {MAX_LITERAL_CHARS}",
            param=param,
        )
    elif item["operator"]:
        raise InvalidRequestError(
            f"the grammar uses {item['operator']}, which cannot be bounded; expected terminals without it", param=param
        )
    for digits in (item["least"], item["most"], item["low"], item["high"]):
        if digits and (len(digits) > len(str(MAX_REGEX_COUNT)) or int(digits) > MAX_REGEX_COUNT):
            raise InvalidRequestError(
                f"the grammar counts to {digits[:20]}; expected at most {MAX_REGEX_COUNT}", param=param
            )


def _check_data(keyword: str, text: str, place: int, param: str) -> int:
    """Check the JSON after a keyword; returns where it ends."""
    start = place + len(text[place:]) - len(text[place:].lstrip())
    try:
        data, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        raise InvalidRequestError(f"the grammar has no JSON after {keyword}; expected an object", param=param) from None
    if keyword == "%json":
        check_schema(data, param)
    elif end - start > MAX_LITERAL_CHARS:
        raise InvalidRequestError(
            f"the grammar has {end - start} characters after {keyword}; expected at most {MAX_LITERAL_CHARS}",
            param=param,
        )
    return end


_DECODER: json.JSONDecoder = json.JSONDecoder()
