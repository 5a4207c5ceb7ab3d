"""`kvik bench`: measurements that end in evidence. This file knows nothing of how anything is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvik.cli.compare import compare
from kvik.cli.options import engine_options, json_option
from kvik.cli.results import POSITIVE, check_line, deliver, repeat_options
from kvik.cli.terminal import json_line, note
from kvik.cli.throughput import throughput


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


command.add_command(compare)
command.add_command(throughput)
