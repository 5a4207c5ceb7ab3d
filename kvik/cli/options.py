"""Command-line flags, derived from the documented fields that hold the options.

Engine flags come from the dataclasses of kvik/config.py and sampling flags from SamplingParams, so a flag's name,
default, choices and limits are written once. This file knows nothing of what a command does with the values.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any

import click

from kvik.config import CONCERNS, parse_size
from kvik.errors import ConfigError
from kvik.request import SamplingParams

Command = Callable[..., Any]

SAMPLING_HELP = {
    "max_tokens": "Most tokens to generate.",
    "temperature": "0 is greedy; larger is more varied.",
    "top_p": "Draw from the smallest set of tokens whose probability reaches this.",
    "top_k": "Draw from the k most likely tokens; 0 is all.",
    "min_p": "Drop tokens less likely than this fraction of the likeliest.",
    "repetition_penalty": "Divides the logits of tokens seen before; 1 is off.",
    "presence_penalty": "Subtracted from the logit of every token already in the answer.",
    "frequency_penalty": "Subtracted once per occurrence in the answer.",
    "stop": "Text that ends the answer; may be given several times.",
    "n": "Answers to generate for each prompt.",
    "min_tokens": "Do not stop before this many tokens.",
    "ignore_eos": "Go on past the model's own end tokens.",
    "logprobs": "Log-probabilities of the drawn and this many most likely tokens (shown by --json).",
}


class Size(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """A number of bytes such as 4GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes, at least 1. Fails as a usage error."""
        try:
            size = parse_size(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        if size < 1:
            self.fail(f"{value!r} is not above 0", param, ctx)
        return size


def flag_name(field_name: str) -> str:
    """`--max-num-seqs` for `max_num_seqs`."""
    return "--" + field_name.replace("_", "-")


def engine_fields() -> list[dataclasses.Field[Any]]:
    """Every engine option, in the order of its concern."""
    return [f for kind in CONCERNS.values() for f in dataclasses.fields(kind)]


def _engine_flag(field: dataclasses.Field[Any]) -> Callable[[Command], Command]:
    flag = flag_name(field.name)
    help_text, shown = field.metadata["help"], field.default is not None
    if isinstance(field.default, bool):
        spelling = f"{flag}/--no-{flag[2:]}" if field.default else flag
        return click.option(
            spelling, field.name, is_flag=True, default=field.default, help=help_text, show_default=True
        )
    return click.option(
        flag, field.name, type=_engine_type(field), default=field.default, help=help_text, show_default=shown
    )


def _engine_type(field: dataclasses.Field[Any]) -> Any:
    if field.metadata["choices"]:
        return click.Choice(field.metadata["choices"])
    if field.metadata["size"]:
        return Size()
    if field.metadata["low"] is not None:
        return click.IntRange(min=field.metadata["low"])
    return click.STRING


def engine_options(command: Command) -> Command:
    """Give a command every engine flag; it receives their values as one dict, `engine`."""
    fields = engine_fields()

    @functools.wraps(command)
    def gathered(*args: Any, **values: Any) -> Any:
        engine = {f.name: values.pop(f.name) for f in fields}
        return command(*args, engine=engine, **values)

    decorated: Command = gathered
    for field in reversed(fields):
        decorated = _engine_flag(field)(decorated)
    return decorated


def _sampling_flag(name: str, default: Any) -> Callable[[Command], Command]:
    kind = typing.get_type_hints(SamplingParams)[name]
    plain = next((t for t in typing.get_args(kind) if t is not type(None)), kind)
    if plain is bool:
        return click.option(flag_name(name), name, is_flag=True, help=SAMPLING_HELP[name])
    repeated = name == "stop"
    return click.option(
        flag_name(name),
        name,
        type=str if repeated else plain,
        multiple=repeated,
        default=default,
        help=SAMPLING_HELP[name],
        show_default=not repeated and default is not None,
    )


def sampling_options(*, without: tuple[str, ...] = (), **defaults: Any) -> Callable[[Command], Command]:
    """Give a command the sampling flags; it receives their values as one SamplingParams, `params`.

    `defaults` replaces the defaults of SamplingParams where a command line is better served by another one.
    """
    own = {f.name: f.default for f in dataclasses.fields(SamplingParams)}
    names = [name for name in SAMPLING_HELP if name not in without]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def gathered(*args: Any, **values: Any) -> Any:
            params = SamplingParams(**{name: values.pop(name) for name in names})
            return command(*args, params=params, **values)

        decorated: Command = gathered
        for name in reversed(names):
            decorated = _sampling_flag(name, defaults.get(name, own[name]))(decorated)
        return decorated

    return decorate


def json_option(command: Command) -> Command:
    """The flag `--json`, received as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")(command)
