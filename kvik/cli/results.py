"""What the measuring commands share: flags for repetition, and results shown to people or written as evidence.

This file knows nothing of how anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kvik.cli.options import json_option
from kvik.cli.terminal import human_rate, json_line

Command = Callable[..., Any]

POSITIVE = click.IntRange(min=1)


def repeat_options(command: Command) -> Command:
    """Flags that say how long to repeat and where the result goes."""
    return repeat_options_with(warmups=1, repetitions=20)(command)


def repeat_options_with(*, warmups: int, repetitions: int) -> Callable[[Command], Command]:
    """The same flags with other defaults, for measurements that take minutes."""
    flags = (
        click.option(
            "--warmups", type=click.IntRange(min=0), default=warmups, show_default=True, help="Samples to drop first."
        ),
        click.option(
            "--repetitions", type=POSITIVE, default=repetitions, show_default=True, help="Most samples to take."
        ),
        click.option(
            "--spread",
            type=click.FloatRange(min=0, min_open=True),
            default=5.0,
            show_default=True,
            help="Stop when the median is known to this many percent.",
        ),
        click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here."),
        json_option,
    )

    def decorate(command: Command) -> Command:
        for flag in reversed(flags):
            command = flag(command)
        return command

    return decorate


def repetition(warmups: int, repetitions: int, spread: float) -> Any:
    """The rule of repetition that the flags describe; `--repetitions` below 5 takes exactly that many."""
    from kvik.bench.measure import Repeat

    return Repeat(warmups=warmups, least=min(5, repetitions), most=repetitions, spread_percent=spread)


def deliver(
    measure: Callable[[Any], dict[str, Any]],
    *,
    warmups: int,
    repetitions: int,
    spread: float,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure, write the evidence where it was asked for, and show it."""
    hand_over(measure(repetition(warmups, repetitions, spread)), table, output=output, as_json=as_json)


def hand_over(
    result: dict[str, Any], rows: Callable[[dict[str, Any]], list[str]], *, output: Path | None, as_json: bool
) -> None:
    """Write a result where it was asked for, and show it: as rows for people, or as JSON."""
    from kvik.bench.evidence import write

    if output is not None:
        write(result, output)
    click.echo(json_line(result) if as_json else "\n".join(rows(result)))


def table(result: dict[str, Any]) -> list[str]:
    """A result for people."""
    summary, limits, machine = result["summary"], result["limits"], result["machine"]
    lines = [
        f"{result['kind']:<20}{(result['model'] or {}).get('name', machine['cpu'])}",
        *(f"  {name:<18}{value}" for name, value in result["workload"].items()),
        f"median              {summary['median']:.2f} {summary['unit']}"
        f" ({summary['min']:.2f} .. {summary['max']:.2f}, {summary['repetitions']} samples)",
        f"spread              {summary['spread_percent']:.1f} % from least to most{known(summary)}",
        f"read bandwidth      {human_rate(machine['read_bandwidth'], 'B/s')}",
        *(f"matrix peak {form:<8}{human_rate(rate, 'op/s')}" for form, rate in machine["matrix_peak"].items()),
    ]
    if limits["fraction"] is not None:
        lines.append(
            f"roof                {limits['roof']:.2f} {summary['unit']}; reached {100 * limits['fraction']:.1f} %"
        )
    if limits["does_not_bind"]:
        lines.append(f"limit               {limits['does_not_bind']}")
    return [*lines, *(check_line(check) for check in result["checks"])]


def known(summary: dict[str, Any]) -> str:
    """How well the median is known, where that can be said."""
    spread = summary["median_spread_percent"]
    return "" if spread is None else f"; median known to {spread:.1f} %"


def check_line(check: dict[str, Any]) -> str:
    """One check for people."""
    return f"{'pass' if check['passed'] else 'FAIL'}  {check['name']}: {check['detail']}"
