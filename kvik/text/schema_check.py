"""Bounds on JSON schemas, and the keywords that are kept, checked before a schema is compiled.

Compiling takes time in proportion to a schema, with two exceptions that this file keeps small: schemas that must hold
at once (`allOf`, a `$ref` or `anyOf` beside other keywords) are merged branch by branch, so their branches multiply;
and `multipleOf` makes as many states as its digits spell. What a schema means is for the library that compiles it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from kvik.errors import InvalidRequestError
from kvik.text.regex_check import check_regex

MAX_SCHEMA_DEPTH = 64
MAX_SCHEMA_VALUES = 10_000
MAX_SUBSCHEMAS = 1000
MAX_PROPERTIES = 256
"""Of one object."""
MAX_PATTERN_PROPERTIES = 16
MAX_ENUM = 2000
MAX_LITERAL_CHARS = 4096
"""Of a property's name, or of all the strings of one enum value."""
MAX_MERGED_BRANCHES = 512
"""Of all merges together; a pattern, a format or a length beside alternatives counts as four."""
MAX_MERGED_SIZE = 1000
MAX_DIVISORS = 5000
"""The product of all multipleOf, without their decimal point and the zeros at their end."""

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
UNSUPPORTED = frozenset(
    ("$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas", "else", "if")
) | {
    *("maxContains", "minContains", "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
    "uniqueItems",
}
_IN_PLACE = frozenset(("allOf", "anyOf", "oneOf", "$ref", "enum", "const"))
_PATTERNS = frozenset(("pattern", "format", "minLength", "maxLength", "multipleOf"))
_NOTES = frozenset(
    ("$anchor", "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description")
) | {"examples", "id", "readOnly", "title", "writeOnly", "x-guidance"}


@dataclass(frozen=True)
class _Extent:
    """How large a schema is with its references followed, and in how many ways a value can satisfy it."""

    branches: int = 1
    size: int = 1
    recursive: bool = False
    patterned: bool = False
    """Whether it bounds strings by more than their values, which each branch it is merged with must be held against."""


def _beside(extents: Iterable[_Extent]) -> _Extent:
    """Of schemas for different places, such as the properties of an object."""
    parts = list(extents)
    return _joined(1 + sum(part.branches - 1 for part in parts), parts)


def _either(extents: Iterable[_Extent]) -> _Extent:
    """Of schemas one of which must hold."""
    parts = list(extents)
    return _joined(sum(part.branches for part in parts), parts)


def _joined(branches: int, parts: list[_Extent]) -> _Extent:
    recursive, patterned = any(part.recursive for part in parts), any(part.patterned for part in parts)
    return _Extent(branches, 1 + sum(part.size for part in parts), recursive, patterned)


class _Survey:
    """One walk over a schema; every subschema is looked at once, however often it is referred to."""

    def __init__(self, root: Any, param: str) -> None:
        self.root, self.param = root, param
        self.divisors: set[int] = set()
        self._count = self._merged = 0
        self._done: dict[str, _Extent] = {}
        self._open: dict[str, int] = {}
        """References being followed, and how many values deep in the text each was met."""
        self._level = 0

    def refuse(self, what: str, expected: str) -> InvalidRequestError:
        return InvalidRequestError(f"the schema {what}; expected {expected}", param=self.param)

    def extent(self, schema: Any) -> _Extent:
        """Raises InvalidRequestError for what is not supported or too much."""
        if isinstance(schema, bool):
            return _Extent()
        if not isinstance(schema, dict):
            raise self.refuse(f"has {_shown(schema)} for a schema", "an object or a boolean")
        self._count += 1
        if self._count > MAX_SUBSCHEMAS:
            raise self.refuse(f"has more than {MAX_SUBSCHEMAS} subschemas", "fewer")
        self._check_keywords(schema)
        groups = list(self._groups(schema))
        self._check_merge(groups)
        return _joined(math.prod(group.branches for group in groups), groups)

    def _groups(self, schema: dict[str, Any]) -> Iterator[_Extent]:
        """What must hold at once."""
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                yield _either(map(self.extent, schema[key]))
        if isinstance(schema.get("allOf"), list):
            yield from map(self.extent, schema["allOf"])
        if "$ref" in schema:
            yield self._follow(schema["$ref"])
        if isinstance(schema.get("enum"), list):
            yield _Extent(len(schema["enum"]))
        if not schema.keys() <= _IN_PLACE | _NOTES:
            self._level += 1
            inside = _beside(self._children(schema))
            yield replace(inside, patterned=inside.patterned or not schema.keys().isdisjoint(_PATTERNS))
            self._level -= 1

    def _children(self, schema: dict[str, Any]) -> Iterator[_Extent]:
        """The schemas of what lies inside a value."""
        for key in ("properties", "patternProperties"):
            if isinstance(schema.get(key), dict):
                yield _beside(map(self.extent, schema[key].values()))
        if isinstance(schema.get("prefixItems"), list):
            yield from map(self.extent, schema["prefixItems"])
        for key in ("items", "additionalProperties", "additionalItems"):
            if isinstance(schema.get(key), list):
                yield from map(self.extent, schema[key])
            elif key in schema:
                yield self.extent(schema[key])

    def _check_merge(self, groups: list[_Extent]) -> None:
        if len(groups) < 2:
            return
        weights = [group.branches * (4 if group.patterned else 1) for group in groups]
        if sum(weight > 1 for weight in weights) > 1:
            self._merged += math.prod(weights)
        if self._merged > MAX_MERGED_BRANCHES:
            raise self.refuse(f"merges alternatives into {self._merged} branches", f"at most {MAX_MERGED_BRANCHES}")
        if sum(group.size for group in groups) > MAX_MERGED_SIZE:
            raise self.refuse("merges large schemas", f"at most {MAX_MERGED_SIZE} subschemas in one merge")
        if sum(group.recursive for group in groups) > 1:
            raise self.refuse("merges two schemas that contain themselves", "one of them at most")

    def _follow(self, reference: Any) -> _Extent:
        """The extent of what a reference leads to."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise self.refuse(f"has the $ref {_shown(reference)}", "one within the schema, such as #/$defs/name")
        if reference in self._done:
            return self._done[reference]
        if reference in self._open:
            if self._open[reference] == self._level:
                raise self.refuse(f"has the $ref {_shown(reference)}, which leads back to itself", "one that ends")
            return _Extent(recursive=True)
        if len(self._open) >= MAX_SCHEMA_DEPTH:
            raise self.refuse(f"follows more than {MAX_SCHEMA_DEPTH} references in a row", "fewer")
        self._open[reference] = self._level
        self._done[reference] = self.extent(self._resolve(reference))
        del self._open[reference]
        return self._done[reference]

    def _resolve(self, reference: str) -> Any:
        place = self.root
        for part in reference.split("/")[1:]:
            step = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(place, list) and step.isdecimal() and int(step) < len(place):
                place = place[int(step)]
            elif isinstance(place, dict) and step in place:
                place = place[step]
            else:
                raise self.refuse(f"has the $ref {_shown(reference)}, which leads nowhere", "one within the schema")
        return place

    def _check_keywords(self, schema: dict[str, Any]) -> None:
        unsupported = sorted(schema.keys() & UNSUPPORTED)
        if unsupported:
            raise self.refuse(f"uses {', '.join(unsupported)}, which cannot be promised", "a schema without it")
        if schema is not self.root and "$id" in schema:
            raise self.refuse("has an $id inside", "one at the top at most")
        self._check_type(schema.get("type"))
        self._check_object(schema)
        self._check_string(schema)
        for value in [schema["const"]] if "const" in schema else schema.get("enum") or ():
            self._check_literal("a value in enum or const", sum(map(len, strings_in(value))))
        if "multipleOf" in schema:
            self._note_divisor(schema["multipleOf"])

    def _check_type(self, kind: Any) -> None:
        for name in kind if isinstance(kind, list) else [kind]:
            if name is not None and name not in TYPES:
                raise self.refuse(f"has the type {_shown(name)}", f"one of {', '.join(TYPES)}")

    def _check_object(self, schema: dict[str, Any]) -> None:
        for key, most in (("properties", MAX_PROPERTIES), ("patternProperties", MAX_PATTERN_PROPERTIES)):
            members = schema.get(key)
            if isinstance(members, dict):
                if len(members) > most:
                    raise self.refuse(f"has {len(members)} {key} in one object", f"at most {most}")
                self._check_literal("a property's name", max(map(len, members), default=0))
        if isinstance(schema.get("patternProperties"), dict):
            for pattern in schema["patternProperties"]:
                check_regex(pattern, self.param)
        required, least = schema.get("required"), schema.get("minProperties")
        known = len(required) if isinstance(required, list) else 0
        if isinstance(least, int) and least > known + 1:
            raise self.refuse(
                f"has minProperties {least}, which cannot be promised as names may come twice",
                f"at most {known + 1} here, one more than are required",
            )

    def _check_string(self, schema: dict[str, Any]) -> None:
        if isinstance(schema.get("pattern"), str):
            check_regex(schema["pattern"], self.param)
        if "format" in schema and schema["format"] not in FORMATS:
            raise self.refuse(f"has the format {_shown(schema['format'])}", f"one of {', '.join(FORMATS)}")
        if isinstance(schema.get("enum"), list) and len(schema["enum"]) > MAX_ENUM:
            raise self.refuse(f"has an enum of {len(schema['enum'])} values", f"at most {MAX_ENUM}")

    def _check_literal(self, what: str, length: int) -> None:
        if length > MAX_LITERAL_CHARS:
            raise self.refuse(f"has {what} of {length} characters", f"at most {MAX_LITERAL_CHARS}")

    def _note_divisor(self, divisor: Any) -> None:
        if isinstance(divisor, (int, float)) and not isinstance(divisor, bool):
            digits = Decimal(repr(divisor)).normalize().as_tuple().digits
            self.divisors.add(int("".join(map(str, digits))))
        if math.prod(self.divisors) > MAX_DIVISORS:
            raise self.refuse(f"has multipleOf {divisor}", f"at most {MAX_DIVISORS} for all of them multiplied")


def check_schema(schema: Any, param: str = "json_schema") -> None:
    """Hold a schema against the bounds. Raises InvalidRequestError naming what is unsupported or too much."""
    check_nesting(schema, param)
    _Survey(schema, param).extent(schema)


def check_nesting(value: Any, param: str) -> None:
    """Hold JSON data of any depth against the bounds on depth and number of values. Raises InvalidRequestError."""
    layer, depth, count = [value], 0, 0
    while layer:
        depth, count = depth + 1, count + len(layer)
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidRequestError(
                f"the schema nests more than {MAX_SCHEMA_DEPTH} levels deep; expected fewer", param=param
            )
        if count > MAX_SCHEMA_VALUES:
            raise InvalidRequestError(
                f"the schema holds more than {MAX_SCHEMA_VALUES} values; expected fewer", param=param
            )
        layer = [child for each in layer for child in _children_of(each)]


def _children_of(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()


def strings_in(value: Any) -> Iterator[str]:
    """Every string of JSON data, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield key
            yield from strings_in(child)
    elif isinstance(value, list):
        for child in value:
            yield from strings_in(child)


def _shown(value: Any) -> str:
    """A value for a message, never longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
