"""`kvik bench latency`: one request after another, offline. This file knows nothing of how they are timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvik.cli.bench_serve import times_line
from kvik.cli.options import engine_options
from kvik.cli.results import POSITIVE, hand_over, repeat_options_with, repetition
from kvik.cli.terminal import note


@click.command()
@click.option("--input-len", type=POSITIVE, default=128, show_default=True, help="Tokens of a prompt.")
@click.option("--output-len", type=POSITIVE, default=64, show_default=True, help="Tokens of an answer.")
@engine_options
@repeat_options_with(warmups=2, repetitions=20)
def latency(
    input_len: int,
    output_len: int,
    engine: dict[str, Any],
    warmups: int,
    repetitions: int,
    spread: float,
    output: Path | None,
    as_json: bool,
) -> None:
    """Latency of a request that has the engine to itself: TTFT, TPOT, ITL, E2E."""
    from kvik.bench.latency import LatencyWorkload, measure_latency
    from kvik.config import EngineConfig

    config, workload = EngineConfig.from_options(**engine), LatencyWorkload(input_len, output_len)
    result = measure_latency(config, workload, repetition(warmups, repetitions, spread), note)
    hand_over(result, rows, output=output, as_json=as_json)


def rows(result: dict[str, Any]) -> list[str]:
    """The percentiles for people."""
    head = f"{'milliseconds':<20}{'p50':>10}{'p90':>10}{'p99':>10}{'mean':>10}{'most':>10}"
    return [
        head,
        *(times_line(name, result["latency"][f"{name.lower()}_ms"]) for name in ("TTFT", "TPOT", "ITL", "E2E")),
    ]
