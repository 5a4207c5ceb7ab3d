"""Grammars: what a text must look like, as one string that crosses every border and can be used up at the other end.

    SamplingParams(grammar=json_schema({"type": "object", ...}))

Each function makes such a string from what a user means and refuses what is wrong, unsupported or too large, with our
own words, before a request exists. The string is llguidance's own: a grammar in lark's notation, or JSON that lists
grammars. This file knows nothing of tokens, models or requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from kvik.errors import InvalidRequestError
from kvik.request import MAX_GRAMMAR_CHARS
from kvik.text.lark_check import check_lark
from kvik.text.regex_check import check_regex
from kvik.text.schema_check import MAX_LITERAL_CHARS, check_nesting, check_schema

MAX_SCHEMA_CHARS = 65536
MAX_CHOICES = 2000
WHITESPACE = r" |\n[ \t]{0,24}"
"""What may stand between the parts of JSON: a space, or a new line and its indentation. A model that would write
spaces for ever cannot."""
LIMITS = LLParserLimits(
    max_items_in_row=1200,
    initial_lexer_fuel=200_000,
    step_lexer_fuel=200_000,
    step_max_items=10_000,
    max_lexer_states=20_000,
    max_grammar_size=50_000,
    verbose_errors=False,
)
"""What compiling a grammar and following it by one token may take: tens of milliseconds, mostly far less."""


def json_object() -> str:
    """Any JSON object."""
    return _listed(json_schema={"type": "object", "x-guidance": {"whitespace_pattern": WHITESPACE}})


def json_schema(schema: Any, *, param: str = "json_schema") -> str:
    """JSON that satisfies a schema: a dict, a boolean, or either as text. Properties come in the schema's order.

    Raises InvalidRequestError, naming `param`, for what is no schema, cannot be promised, or is too large.
    """
    return _valid(_listed(json_schema=prepared_schema(schema, param)), param)


def regex(pattern: str, *, param: str = "regex") -> str:
    """The whole text matches a regular expression in the syntax of Rust's `regex`. Raises InvalidRequestError."""
    _expect_text(pattern, "the regular expression", param)
    check_regex(pattern, param)
    return _valid(_listed(lark_grammar=f"start: {_slashed(pattern)}"), param)


def lark(text: str, *, param: str = "lark") -> str:
    """The text follows a grammar in lark's notation, whose first rule is `start`. Raises InvalidRequestError."""
    _expect_text(text, "the grammar", param)
    return check(_listed(lark_grammar=text), param=param)


def choice(options: Sequence[str], *, param: str = "choice") -> str:
    """The text is one of these. Raises InvalidRequestError."""
    if isinstance(options, str) or not isinstance(options, Sequence) or not 0 < len(options) <= MAX_CHOICES:
        raise InvalidRequestError(f"choice is {_shown(options)}; expected 1 to {MAX_CHOICES} strings", param=param)
    for option in options:
        _expect_text(option, "a choice", param)
        if not option or len(option) > MAX_LITERAL_CHARS:
            raise InvalidRequestError(
                f"a choice has {len(option)} characters; expected 1 to {MAX_LITERAL_CHARS}", param=param
            )
    alternatives = " | ".join(map(quoted, options))
    return check(_listed(lark_grammar=f"start: CHOICE\nCHOICE: {alternatives}"), param=param)


def check(grammar: Any, *, param: str = "grammar") -> str:
    """Hold any grammar, made here or not, against all bounds, and compile it once without a model. Returns it.

    Raises InvalidRequestError, naming `param`. What passes is compiled for a model in tens of milliseconds at most.
    """
    _expect_text(grammar, "the grammar", param)
    if not grammar or len(grammar) > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(
            f"the grammar has {len(grammar)} characters; expected 1 to {MAX_GRAMMAR_CHARS}", param=param
        )
    for kind, text in _parts(grammar, param):
        if kind == "lark_grammar":
            check_lark(text, param)
        else:
            check_schema(text, param)
    return _valid(grammar, param)


def prepared_schema(schema: Any, param: str) -> dict[str, Any]:
    """A schema within all bounds, as a dict of our own with the options that we compile with. Raises
    InvalidRequestError.
    """
    data = _as_data(schema, param)
    data = {} if data is True else data
    if not isinstance(data, dict):
        raise InvalidRequestError(f"the schema is {_shown(data)}; expected an object", param=param)
    check_schema(data, param)
    return {**data, "x-guidance": {"whitespace_pattern": WHITESPACE}}


def quoted(text: str) -> str:
    """A string in lark's notation that stands for exactly this text."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _as_data(schema: Any, param: str) -> Any:
    """A copy of a schema as plain JSON data."""
    try:
        if not isinstance(schema, str):
            check_nesting(schema, param)
            schema = json.dumps(schema, allow_nan=False)
        if len(schema) > MAX_SCHEMA_CHARS:
            raise InvalidRequestError(
                f"the schema has {len(schema)} characters; expected at most {MAX_SCHEMA_CHARS}", param=param
            )
        return json.loads(schema)
    except RecursionError:
        raise InvalidRequestError("the schema is nested too deeply to be read; expected less", param=param) from None
    except InvalidRequestError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"the schema is no JSON: {first_line(error)}", param=param) from None


def _listed(**grammar: Any) -> str:
    return json.dumps({"grammars": [grammar]}, ensure_ascii=False)


_SLASHED = {"/": r"\/", "\n": r"\n", r"\d": "[0-9]"}
"""What is written otherwise in lark's notation. Digits are those that every reader takes for digits."""


def _slashed(pattern: str) -> str:
    """A regular expression in lark's notation."""
    body = re.sub(r"\\.|[/\n]", lambda found: _SLASHED.get(found[0], found[0]), pattern, flags=re.DOTALL)
    return f"/{body}/" if body else '""'


def _parts(grammar: str, param: str) -> list[tuple[str, Any]]:
    """The grammars in a string, each with its kind."""
    if not grammar.startswith("{"):
        return [("lark_grammar", grammar)]
    try:
        listed = json.loads(grammar)["grammars"]
        return [(kind, each[kind]) for each in listed for kind in ("lark_grammar", "json_schema") if each.get(kind)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidRequestError(
            "the grammar is no list of grammars; make it with kvik.text.grammar", param=param
        ) from None


@cache
def _any_bytes() -> LLTokenizer:
    """The smallest vocabulary there is."""
    return LLTokenizer("byte")


def _valid(grammar: str, param: str) -> str:
    """The grammar, if it compiles."""
    compiled(_any_bytes(), grammar, param)
    return grammar


def compiled(tokens: LLTokenizer, grammar: str, param: str = "grammar") -> LLMatcher:
    """A grammar for a vocabulary. Raises InvalidRequestError."""
    try:
        made = LLMatcher(tokens, grammar, log_level=0, limits=LIMITS)
        problem = made.get_error()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the library is no Exception
        problem = str(error)
    if problem:
        raise InvalidRequestError(f"the grammar cannot be used: {first_line(problem)}", param=param) from None
    return made


def first_line(error: Any) -> str:
    """What a library's message says, fit to be shown."""
    lines = str(error).strip().split("\n")
    line = next((line[7:] for line in lines if line.startswith("error: ")), lines[0])
    line = re.sub(r"^(?:at )?\d+\(\d+\): ", "", line).split("; use sys.")[0]
    if line.startswith("oneOf constraints"):
        line = "the branches of oneOf may overlap; write anyOf, or tell them apart by type or by a const"
    elif line.startswith("panic:"):
        known = re.search(r"no token begins the text b'[^']*'", line)
        line = known[0] if known else "an error inside the library"
    printable = "".join(char if char.isprintable() else " " for char in line)
    return printable if len(printable) <= 160 else printable[:157] + "..."


def _expect_text(value: Any, what: str, param: str) -> None:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{what} is a {type(value).__name__}; expected a string", param=param)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError(
                f"{what} has half of a surrogate pair; expected Unicode text", param=param
            ) from None


def _shown(value: Any) -> str:
    """A value for a message, never longer than a line."""
    text = f"{type(value).__name__} of {len(value)}" if isinstance(value, (dict, list, tuple)) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
