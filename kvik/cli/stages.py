"""`kvik bench stages`: what each layer above the model's steps costs. This file knows nothing of how it is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvik.cli.options import engine_options
from kvik.cli.results import POSITIVE, check_line, hand_over, known, repeat_options_with, repetition
from kvik.cli.terminal import note

QUICK = {"num_prompts": 4, "output_len": 8, "concurrency": 2, "rounds": 2}


@click.command()
@click.option("--concurrency", type=POSITIVE, default=8, show_default=True, help="Requests that have a seat.")
@click.option("--num-prompts", type=POSITIVE, help="Requests. Default: 40, or 1 with --concurrency 1.")
@click.option("--input-len", type=POSITIVE, default=32, show_default=True, help="Tokens of a prompt.")
@click.option("--output-len", type=POSITIVE, default=50, show_default=True, help="Tokens of an answer.")
@click.option("--quick", is_flag=True, help="A few short rounds: the stages must agree, their speed says little.")
@engine_options
@repeat_options_with(warmups=1, repetitions=7)
def stages(
    concurrency: int,
    num_prompts: int | None,
    input_len: int,
    output_len: int,
    quick: bool,
    engine: dict[str, Any],
    warmups: int,
    repetitions: int,
    spread: float,
    output: Path | None,
    as_json: bool,
) -> None:
    """The same requests through one layer more at a time, each as a share of the bare step.

    runner (recorded plans), plans (scheduler), engine, llm (LLM.generate), async (AsyncLLM), process (AsyncLLM with the
    engine in a child process), http, stream. Loads the model four times.
    """
    from kvik.bench.stages import StageWorkload, measure_stages
    from kvik.config import EngineConfig
    from kvik.engine.build import open_model

    config = EngineConfig.from_options(**engine)
    repeat = repetition(warmups, repetitions, spread)
    if quick:
        concurrency, num_prompts, output_len = QUICK["concurrency"], QUICK["num_prompts"], QUICK["output_len"]
        repeat = repetition(0, QUICK["rounds"], spread)
    count = num_prompts or (40 if concurrency > 1 else 1)
    vocab_size = open_model(config).spec.vocab_size
    workload = StageWorkload.seed_002(concurrency, count, input_len, output_len, vocab_size)
    result = measure_stages(config, workload, repeat, note, quick=quick)
    hand_over(result, table, output=output, as_json=as_json)


def table(result: dict[str, Any]) -> list[str]:
    """The ladder for people."""
    workload, limits = result["workload"], result["limits"]
    lines = [
        f"{'stages':<20}{result['model']['name']}, {result['model']['weights']}: {workload['num_prompts']} requests, "
        f"{workload['concurrency']} at a time, {workload['input_len']} in, {workload['output_len']} out",
        f"{'':<12}{'tokens/s':>10}{'least':>10}{'most':>10}{'share':>9}{'least':>9}{'most':>9}{'added a token':>16}",
        *(row(name, stage) for name, stage in result["stages"].items()),
        f"{result['summary']['repetitions']} rounds{known(result['summary'])}",
    ]
    if limits["fraction"] is not None and not limits["does_not_bind"]:
        lines.append(f"the bare step reaches {100 * limits['fraction']:.1f} % of the memory limit")
    return [*lines, *(check_line(check) for check in result["checks"] if not check["passed"])]


def row(name: str, stage: dict[str, Any]) -> str:
    """One stage."""
    speed, share = stage["speed"], stage["share"]
    shares = "".join(f"{100 * share[key]:>8.1f}%" for key in ("median", "min", "max"))
    return (
        f"{name:<12}{speed['median']:>10.1f}{speed['min']:>10.1f}{speed['max']:>10.1f}"
        f"{shares}{1e3 * stage['added_ms_per_token']:>13.1f} us"
    )
