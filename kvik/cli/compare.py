"""`kvik bench compare`: engines side by side on the same workload. This file knows nothing of how they are run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvik.cli.options import engine_options
from kvik.cli.results import POSITIVE, check_line, repeat_options_with, repetition
from kvik.cli.terminal import human_bytes, json_line, note

DEFAULT_ENGINES = "kvik,transformers,vllm,llamacpp,openvino"
DEFAULT_CASES = "decode1,decode8,prefill512,seed002"


@click.command()
@click.option("--engines", default=DEFAULT_ENGINES, show_default=True, help="NAME or NAME:FORM, divided by commas.")
@click.option(
    "--case",
    "cases",
    default=DEFAULT_CASES,
    show_default=True,
    help="decodeB[@C], prefillN[xB], seed002, nano-vllm[@COUNT], divided by commas.",
)
@click.option("--steps", type=POSITIVE, default=32, show_default=True, help="Steps of a decode that are watched.")
@click.option(
    "--peers", type=click.Path(path_type=Path), help="Where the engines are set up. Default: ~/.cache/kvik/peers."
)
@click.option(
    "--converted", type=click.Path(path_type=Path), help="Converted weights. Default: PEERS/models/qwen3-0.6b."
)
@engine_options
@repeat_options_with(warmups=1, repetitions=7)
def compare(
    engines: str,
    cases: str,
    steps: int,
    peers: Path | None,
    converted: Path | None,
    engine: dict[str, Any],
    warmups: int,
    repetitions: int,
    spread: float,
    output: Path | None,
    as_json: bool,
) -> None:
    """Engines side by side: the same workload through each in turn, one at work at a time.

    `tools/peers/setup.py` sets the engines up and `tools/peers/convert.py` writes the weights; docs/peers.md has the
    rest. With several cases, each is written beside the file of -o, its name before the suffix.
    """
    from kvik.bench.compare import compare as run_comparison

    root = (peers or Path.home() / ".cache" / "kvik" / "peers").absolute()
    weights = (converted or root / "models" / "qwen3-0.6b").absolute()
    comparison = plan_comparison(engines, cases, steps, root, weights, engine, repetition(warmups, repetitions, spread))
    results = run_comparison(comparison, note)
    write_results(results, output)
    click.echo(json_line({"results": results}) if as_json else "\n\n".join("\n".join(rows(each)) for each in results))


def plan_comparison(
    engines: str, cases: str, steps: int, root: Path, converted: Path, engine: dict[str, Any], repeat: Any
) -> Any:
    """Everything that can be refused is refused here, before a process is started."""
    from kvik.bench.compare import Comparison
    from kvik.bench.contenders import choose_contenders
    from kvik.bench.workload import parse_cases
    from kvik.checkpoint import open_checkpoint
    from kvik.config import EngineConfig
    from kvik.errors import ConfigError

    if engine["model"] is not None:
        raise ConfigError(f"model is {engine['model']!r}; engines are compared on --converted, expected no --model")
    form = "bf16" if engine["weights"] == "auto" else engine["weights"]
    asked = [name.strip() for name in engines.split(",") if name.strip()]
    contenders, skipped = choose_contenders(asked, form, root, converted)
    for label, why in skipped.items():
        note(f"skipped: {label}: {why}")
    plain = open_checkpoint(str(converted / "hf"))
    return Comparison(
        contenders,
        skipped,
        parse_cases(cases, steps),
        EngineConfig.from_options(**engine),
        plain.spec,
        str(converted.name),
        repeat,
    )


def write_results(results: list[dict[str, Any]], output: Path | None) -> None:
    """One file for each case."""
    from kvik.bench.evidence import write

    if output is None:
        return
    for result in results:
        name = f"{output.stem}-{result['workload']['case']}{output.suffix}"
        write(result, output if len(results) == 1 else output.with_name(name))


def rows(result: dict[str, Any]) -> list[str]:
    """A comparison for people: one line for each engine."""
    summary, limits, workload = result["summary"], result["limits"], result["workload"]
    engines, first = result["options"]["engines"], result["options"]["engine"]
    speeds = {first: summary} | {label: its["speed"] for label, its in result["comparison"].items()}
    head = (
        f"{'engine':<20}{'form':<8}{'tokens/s':>10}{'least':>10}{'most':>10}{'times':>8}{'first token':>13}{'peak':>11}"
    )
    return [
        f"{workload['case']}: {workload['requests']} requests, {workload['concurrency']} at a time, "
        f"{workload['input_tokens']} tokens in, {workload['output_tokens']} out, {summary['repetitions']} rounds",
        head,
        *(row(label, engines[label]["form"], speed, result) for label, speed in speeds.items()),
        *(f"skipped  {label}: {why}" for label, why in result["skipped"].items()),
        *([f"{first}: {100 * limits['fraction']:.1f} % of the limit"] if limits["fraction"] is not None else []),
        *(check_line(check) for check in result["checks"] if not check["passed"]),
    ]


def row(label: str, form: str, speed: dict[str, Any], result: dict[str, Any]) -> str:
    """One engine: its speed, how many times as fast the first engine is, time to the first token, memory."""
    import statistics

    own = [sample["peers"].get(label, sample) for sample in result["samples"]]
    peaks = [sample["peak_bytes"] for sample in own if sample["peak_bytes"]]
    times = result["comparison"].get(label, {}).get("ratio", {}).get("median")
    return (
        f"{label:<20}{form:<8}{speed['median']:>10.2f}{speed['min']:>10.2f}{speed['max']:>10.2f}"
        f"{'' if times is None else f'{times:.2f}x':>8}"
        f"{statistics.median(sample['first_token_s'] for sample in own):>11.3f} s"
        f"{human_bytes(max(peaks)) if peaks else '-':>11}"
    )
