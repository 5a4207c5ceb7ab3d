"""`kvik serve`: the OpenAI-compatible server.

Turns flags, files and the environment into options and runs the server; the only place where an API key may come from
the environment. This file knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kvik.cli.options import Command, Size, engine_options, flag_name
from kvik.cli.session import read_text
from kvik.errors import ConfigError
from kvik.server.options import SERVER_CONCERNS, ServerOptions

INTERRUPTED = 130
KEY_VARIABLE = "KVIK_API_KEY"


def server_options(command: Command) -> Command:
    """Give a command every server flag; it receives their values as one dict, `server`."""
    fields = [
        (f, typing.get_type_hints(kind)[f.name]) for kind in SERVER_CONCERNS.values() for f in dataclasses.fields(kind)
    ]

    @functools.wraps(command)
    def gathered(*args: Any, **values: Any) -> Any:
        server = {f.name: values.pop(f.name) for f, _ in fields}
        return command(*args, server=server, **values)

    decorated: Command = gathered
    for field, kind in reversed(fields):
        decorated = _flag(field, kind)(decorated)
    return decorated


def _flag(field: dataclasses.Field[Any], hint: Any) -> Callable[[Command], Command]:
    """The click option of one field."""
    name, default, help_text = flag_name(field.name), field.default, field.metadata["help"]
    if isinstance(default, bool):
        spelling = f"{name}/--no-{name[2:]}" if default else name
        return click.option(spelling, field.name, is_flag=True, default=default, help=help_text, show_default=True)
    if isinstance(default, tuple):
        return click.option(name, field.name, multiple=True, help=help_text)
    shown = default is not None
    kind = _kind(field, hint)
    return click.option(name, field.name, type=kind, default=default, help=help_text, show_default=shown)


def _kind(field: dataclasses.Field[Any], hint: Any) -> Any:
    if field.metadata["choices"]:
        return click.Choice(field.metadata["choices"])
    if field.metadata["size"]:
        return Size()
    plain = next((each for each in (*typing.get_args(hint), hint) if each in (int, float, str)), str)
    low = field.metadata["low"]
    if low is None:
        return plain
    return click.IntRange(min=low) if plain is int else click.FloatRange(min=low)


@click.command("serve")
@server_options
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help=f"File with API keys, one a line. The environment variable {KEY_VARIABLE} may hold one as well.",
)
@engine_options
def command(server: dict[str, Any], api_key_file: Path | None, engine: dict[str, Any]) -> int:
    """Serve a model over HTTP in the form of OpenAI's API.

    Listens on this machine only unless --host says otherwise, and says on stderr, a line at a time, what it does.
    SIGTERM or Ctrl-C lets running requests finish; a second one ends at once.
    """
    server["api_key"] = (*server["api_key"], *keys_from(api_key_file, os.environ.get(KEY_VARIABLE)))
    return serve(ServerOptions.from_options(**server), engine)


def keys_from(file: Path | None, variable: str | None) -> list[str]:
    """API keys of a file and of the environment. Raises InvalidRequestError, ConfigError."""
    keys = [] if file is None else [line.strip() for line in read_text(file).splitlines()]
    keys = [key for key in keys if key and not key.startswith("#")]
    if file is not None and not keys:
        raise ConfigError(f"{file} holds no API key; expected one a line")
    return keys + ([variable.strip()] if variable and variable.strip() else [])


def serve(options: ServerOptions, engine: dict[str, Any]) -> int:
    """Run the server until a signal ends it. Raises KvikError."""
    from kvik.engine.async_llm import AsyncLLM
    from kvik.server.assemble import make_app
    from kvik.server.logs import Log
    from kvik.server.run import bind, run

    sock = bind(options.listen)
    log = Log(sys.stderr, options.flow.log_level)

    def launch() -> AsyncLLM:
        return AsyncLLM.launch(process=True, **engine)

    try:
        interrupted = asyncio.run(run(launch, lambda backend: make_app(backend, options, log), sock, log))
    finally:
        sock.close()
    return INTERRUPTED if interrupted else 0
