"""`kvik bench`: measurements that end in evidence. This file knows nothing of how anything is measured."""

from __future__ import annotations

from typing import Any

import click

from kvik.cli.bench_serve import serve
from kvik.cli.compare import compare
from kvik.cli.ladder import ladder
from kvik.cli.latency import latency
from kvik.cli.options import engine_options
from kvik.cli.report import report
from kvik.cli.results import POSITIVE, deliver, repeat_options
from kvik.cli.stages import stages
from kvik.cli.suite import suite
from kvik.cli.terminal import note
from kvik.cli.throughput import throughput
from kvik.cli.verify import verify


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


command.add_command(compare)
command.add_command(ladder)
command.add_command(latency)
command.add_command(report)
command.add_command(serve)
command.add_command(stages)
command.add_command(suite)
command.add_command(throughput)
command.add_command(verify)
