"""Structure: the form that a client wants an answer's text to have, from whichever field asks for it.

`response_format` and the four `guided_` fields say the same thing in different words; at most one of them may. Sizes
are limited here. Whether a schema, a regular expression or a grammar means anything is for whoever compiles it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from kvik.server.protocol.errors import bad_request
from kvik.server.protocol.readers import an_object, expected, flag, optional, required, strings, text

MAX_SCHEMA_BYTES = 2**18
MAX_REGEX_CHARS = 2**14
MAX_GRAMMAR_CHARS = 2**16
MAX_CHOICES = 1024
MAX_CHOICE_CHARS = 2**12
MAX_NAME_CHARS = 64


@dataclass(frozen=True)
class Structure:
    """A constraint on the text. By `kind`, `payload` is

    json_object   None: any JSON object
    json_schema   the schema, an object
    regex         the expression, for the whole text
    grammar       a grammar in lark's notation
    choice        a tuple of strings, of which the text is one
    tools         a `ToolRules`
    """

    kind: str
    payload: Any
    param: str
    """The field that asked for it, for errors found later."""


def check_schema(schema: Any, param: str) -> dict[str, Any]:
    """A JSON schema of acceptable size. Raises ApiError."""
    an_object(schema, param)
    size = len(msgspec.json.encode(schema))
    if size > MAX_SCHEMA_BYTES:
        raise bad_request(f"{param} has {size} bytes; expected at most {MAX_SCHEMA_BYTES}", param)
    found: dict[str, Any] = schema
    return found


def _response_format(value: Any, param: str) -> Structure | None:
    kind = required(an_object(value, param), "type", text(MAX_NAME_CHARS), f"{param}.")
    if kind == "text":
        return None
    if kind == "json_object":
        return Structure("json_object", None, param)
    if kind != "json_schema":
        raise expected(kind, f"{param}.type", "text, json_object or json_schema")
    path = f"{param}.json_schema."
    wanted = required(value, "json_schema", an_object, f"{param}.")
    required(wanted, "name", text(MAX_NAME_CHARS, empty=False), path)
    optional(wanted, "strict", flag, path=path)
    schema = optional(wanted, "schema", check_schema, path=path)
    if schema is None:
        return Structure("json_object", None, param)
    return Structure("json_schema", schema, f"{path}schema")


def _guided_json(value: Any, param: str) -> Structure:
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(text(MAX_SCHEMA_BYTES)(value, param))
        except (msgspec.DecodeError, RecursionError):
            raise expected(value, param, "a JSON schema, as an object or as text") from None
    return Structure("json_schema", check_schema(value, param), param)


def _guided_choice(value: Any, param: str) -> Structure:
    if not isinstance(value, list):
        raise expected(value, param, "a list of strings")
    return Structure("choice", strings(1, MAX_CHOICES, MAX_CHOICE_CHARS)(value, param), param)


def _guided_regex(value: Any, param: str) -> Structure:
    return Structure("regex", text(MAX_REGEX_CHARS, empty=False)(value, param), param)


def _guided_grammar(value: Any, param: str) -> Structure:
    return Structure("grammar", text(MAX_GRAMMAR_CHARS, empty=False)(value, param), param)


FIELDS = {
    "response_format": _response_format,
    "guided_json": _guided_json,
    "guided_choice": _guided_choice,
    "guided_regex": _guided_regex,
    "guided_grammar": _guided_grammar,
}


def read_structure(body: dict[str, Any]) -> Structure | None:
    """The one constraint that a body asks for, if any. Raises ApiError."""
    found: Structure | None = None
    for name, read in FIELDS.items():
        structure = optional(body, name, read)
        if structure is not None and found is not None:
            raise bad_request(f"{found.param} and {name} both constrain the text; expected one of them", name)
        found = structure or found
    return found
