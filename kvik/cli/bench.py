"""`kvik bench`: measurements that end in evidence. This file knows nothing of how anything is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kvik.cli.options import engine_options, json_option
from kvik.cli.terminal import human_rate, json_line, note

Command = Callable[..., Any]

POSITIVE = click.IntRange(min=1)


def repeat_options(command: Command) -> Command:
    """Flags that say how long to repeat and where the result goes."""
    flags = (
        click.option(
            "--warmups", type=click.IntRange(min=0), default=1, show_default=True, help="Samples to drop first."
        ),
        click.option("--repetitions", type=POSITIVE, default=20, show_default=True, help="Most samples to take."),
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
    for flag in reversed(flags):
        command = flag(command)
    return command


def repetition(warmups: int, repetitions: int, spread: float) -> Any:
    """The rule of repetition that the flags describe; `--repetitions` below 5 takes exactly that many."""
    from kvik.bench.measure import Repeat

    return Repeat(warmups=warmups, least=min(5, repetitions), most=repetitions, spread_percent=spread)


@click.group("bench")
def command() -> None:
    """Measure this machine and a model on it; every result carries its method, raw samples and physical limit."""


@command.command()
@click.option("--batch", type=POSITIVE, default=1, show_default=True, help="Sequences decoded together.")
@click.option("--context", type=POSITIVE, default=100, show_default=True, help="Tokens in the cache at the start.")
@click.option("--output-len", type=POSITIVE, default=32, show_default=True, help="Steps in one sample.")
@click.option(
    "--stage",
    type=click.Choice(["runner", "engine"]),
    default="runner",
    show_default=True,
    help="runner: hand-made plans, no scheduler. engine: the whole engine.",
)
@engine_options
@repeat_options
def decode(batch: int, context: int, output_len: int, stage: str, engine: dict[str, Any], **how: Any) -> None:
    """Steady decode: tokens/s and the fraction of the memory-bandwidth roofline."""
    from kvik.bench.decode import DecodeWorkload, measure_decode
    from kvik.bench.engine_decode import measure_engine_decode
    from kvik.config import EngineConfig

    measure = measure_decode if stage == "runner" else measure_engine_decode
    config, workload = EngineConfig.from_options(**engine), DecodeWorkload(batch, context, output_len)
    deliver(lambda repeat: measure(config, workload, repeat, note), **how)


@command.command()
@click.option("--input-len", type=POSITIVE, default=512, show_default=True, help="Tokens of each prompt.")
@click.option("--batch", type=POSITIVE, default=1, show_default=True, help="Prompts computed together.")
@engine_options
@repeat_options
def prefill(input_len: int, batch: int, engine: dict[str, Any], **how: Any) -> None:
    """Prefill: tokens/s and the fraction of the matrix peak."""
    from kvik.bench.prefill import PrefillWorkload, measure_prefill
    from kvik.config import EngineConfig

    config, workload = EngineConfig.from_options(**engine), PrefillWorkload(batch, input_len)
    deliver(lambda repeat: measure_prefill(config, workload, repeat, note), **how)


@command.command()
@repeat_options
def roofline(**how: Any) -> None:
    """This machine's read bandwidth and matrix peak."""
    from kvik.bench.roofline import measure_roofline

    deliver(lambda repeat: measure_roofline(repeat, note), **how)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def verify(file: Path, as_json: bool) -> None:
    """Compute the identities and limits of a result file again."""
    from kvik.bench.checks import refuse_failed
    from kvik.bench.evidence import verify as verify_file

    checks = verify_file(file)
    if as_json:
        click.echo(json_line({"file": str(file), "passed": all(c["passed"] for c in checks), "checks": checks}))
    else:
        click.echo("\n".join(check_line(check) for check in checks))
    refuse_failed(checks)


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
    from kvik.bench.evidence import write

    result = measure(repetition(warmups, repetitions, spread))
    if output is not None:
        write(result, output)
    click.echo(json_line(result) if as_json else "\n".join(table(result)))


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
