"""What the commands share about the terminal: one-line errors, dim text, bars, JSON lines.

The only place that looks at whether a stream is a terminal and at NO_COLOR. It knows nothing of engines.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

import click


def error_line(message: str) -> None:
    """Print `kvik: error: message` as exactly one line on stderr."""
    click.echo("kvik: error: " + " ".join(message.split()), err=True)


def note(message: str) -> None:
    """Print one dim line on stderr."""
    click.echo(dim(message, sys.stderr), err=True)


def warn_in_a_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as a note, without the place in the code. Stands in for warnings.showwarning."""
    note("kvik: note: " + " ".join(str(message).split()))


def is_terminal(stream: TextIO) -> bool:
    """Whether a person reads this stream as it is written."""
    return stream.isatty()


def dim(text: str, stream: TextIO) -> str:
    """The text in dim letters, where the stream shows them and the user did not set NO_COLOR."""
    if is_terminal(stream) and not os.environ.get("NO_COLOR"):
        return click.style(text, dim=True)
    return text


def show(text: str) -> None:
    """Write streamed text now, without a line break."""
    sys.stdout.write(text)
    sys.stdout.flush()


def json_line(value: Any) -> str:
    """One line of JSON; not-a-number and infinity are refused, text stays readable."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def human_bytes(count: float) -> str:
    """A size such as 1.19 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def human_rate(value: float, unit: str) -> str:
    """A rate such as 37.4 GB/s or 6.29 TFLOP/s."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f} {prefix}{unit}"
    return f"{value:.2f} {unit}"
