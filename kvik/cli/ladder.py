"""`kvik bench ladder`: M1 to M7 on one build and one workload. This file knows nothing of how they are run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from kvik.cli.options import engine_options
from kvik.cli.results import POSITIVE, check_line, repeat_options_with, repetition
from kvik.cli.terminal import human_bytes, json_line, note

PRESETS = ("rungs", "long-prompts", "stall", "prefixes", "all")
HEAD = (
    f"{'':<9}{'tokens/s':>10}{'TTFT ms':>10}{'TPOT ms':>9}{'p99 gap':>9}{'worst':>9}{'KV used':>9}{'fit':>6}"
    + f"{'weights':>11}"
)
COLUMNS = ("tokens_per_s", "ttft_s", "tpot_s", "itl_p99_s", "itl_max_s", "kv_utilisation", "largest_batch")


@click.command()
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="rungs",
    show_default=True,
    help="rungs: M1 to M7. long-prompts: M3, M4. stall: M4, M5. prefixes: M5, M6. all: one after another.",
)
@click.option("--quick", is_flag=True, help="All presets, small and once: asserts identities and answers, not speed.")
@click.option("--num-prompts", type=POSITIVE, default=32, show_default=True, help="Requests at once.")
@click.option("--mean-tokens", type=click.IntRange(min=16), default=512, show_default=True, help="Tokens of a request.")
@click.option("--long-prompt", type=POSITIVE, default=4000, show_default=True, help="Tokens of a long prompt.")
@click.option("--seats", type=POSITIVE, default=8, show_default=True, help="Longest requests the KV cache holds.")
@click.option("--chunk", type=POSITIVE, default=512, show_default=True, help="Most tokens in a step.")
@engine_options
@repeat_options_with(warmups=1, repetitions=5)
def ladder(
    preset: str,
    quick: bool,
    num_prompts: int,
    mean_tokens: int,
    long_prompt: int,
    seats: int,
    chunk: int,
    engine: dict[str, Any],
    warmups: int,
    repetitions: int,
    spread: float,
    output: Path | None,
    as_json: bool,
) -> None:
    """The ladder M1 to M7: each rung is one option more, on one build, with the same answers token for token.

    A round takes every rung there and back; --repetitions counts rounds. With several presets, each is written beside
    the file of -o, its name before the suffix.
    """
    from kvik.bench.ladder.ladder import climb_all
    from kvik.bench.ladder.presets import PRESETS as EVERY
    from kvik.bench.ladder.presets import Setting, fitted
    from kvik.bench.ladder.scenes import Sizes

    engine = {name: value for name, value in engine.items() if not is_default(name, value)}
    sizes = Sizes(requests=num_prompts, mean_tokens=mean_tokens, long_prompt=long_prompt)
    setting = Setting(engine, fitted(sizes, engine), seats, chunk)
    chosen = EVERY if preset == "all" or quick else (preset,)
    results = climb_all(chosen, setting, repetition(warmups, repetitions, spread), note, quick=quick)
    write_each(results, output)
    click.echo(json_line({"results": results}) if as_json else "\n\n".join("\n".join(table(each)) for each in results))


def is_default(name: str, value: Any) -> bool:
    """Whether an engine option was left as it is."""
    from kvik.cli.options import engine_fields

    return any(field.name == name and field.default == value for field in engine_fields())


def write_each(results: list[dict[str, Any]], output: Path | None) -> None:
    """One file for each preset."""
    from kvik.bench.evidence import write

    for result in results if output is not None else ():
        assert output is not None
        named = output.with_name(f"{output.stem}-{result['workload']['preset']}{output.suffix}")
        write(result, output if len(results) == 1 else named)


def table(result: dict[str, Any]) -> list[str]:
    """A contest for people: its sides, the effects that stand out, the claims, and what failed."""
    workload, rounds = result["workload"], result["summary"]["repetitions"]
    return [
        f"{result['kind']} {workload['preset']}: {result['model']['name']}, {workload['requests']} requests, "
        f"{workload['input_tokens']} tokens in, {workload['output_tokens']} out, {rounds} rounds there and back",
        f"  {workload['scene']}",
        HEAD,
        *(side_line(name, side["metrics"]) for name, side in result["sides"].items()),
        *effect_lines(result),
        *quality_lines(result),
        *claim_lines(result),
        *(check_line(check) for check in result["checks"] if not check["passed"] or "token for token" in check["name"]),
        f"{sum(check['passed'] for check in result['checks'])} of {len(result['checks'])} checks passed",
        *(["quick: the speeds above mean little"] if result.get("quick") else []),
    ]


def side_line(name: str, metrics: dict[str, Any]) -> str:
    """One side: medians over its runs."""
    rate, ttft, tpot, p99, worst, used, fit = (metrics[column]["median"] for column in COLUMNS)
    return (
        f"{name:<9}{rate:>10.1f}{1e3 * ttft:>10.1f}{1e3 * tpot:>9.2f}{1e3 * p99:>9.1f}{1e3 * worst:>9.1f}"
        f"{100 * used:>7.1f} %{fit:>6.0f}{human_bytes(metrics['weights_bytes']['median']):>11}"
    )


def effect_lines(result: dict[str, Any]) -> list[str]:
    """Effects on speed and latency, each beside its control."""
    lines = []
    for pair in result["pairs"]:
        if pair["metric"] in ("tokens_per_s", "ttft_s", "itl_max_s"):
            low, high = pair["control"]["min"], pair["control"]["max"]
            told = "" if pair["beyond_control"] else "  not shown: within the control"
            lines.append(
                f"  {pair['metric']:<13}{pair['a']:>7} to {pair['b']:<7}{pair['ratio']['median']:>7.2f}x"
                f"   control {low:.2f} .. {high:.2f}{told}"
            )
    return lines


def quality_lines(result: dict[str, Any]) -> list[str]:
    """Perplexity and accuracy beside each other."""
    quality = result.get("quality")
    if quality is None:
        return []
    lines = []
    for name, side in quality["sides"].items():
        tasks = side["tasks"]
        right = f", {tasks['right']} of {tasks['count']} questions right" if tasks else ""
        lines.append(f"  {name}: perplexity {side['perplexity']:.3f} +- {side['perplexity_error']:.3f}{right}")
    return [*lines, f"  perplexity changes by {quality['perplexity_change_percent']:+.2f} % ({side['text']})"]


def claim_lines(result: dict[str, Any]) -> list[str]:
    """What is said and what was found."""
    lines = []
    for claim in result.get("claims", []):
        word = "holds" if claim["holds"] else "differs" if claim["shown"] else "not shown"
        ours = f"{claim['ours']:.2f}" + ("x" if claim["a"] else "")
        lines.append(f"  {claim['rung']} {word:<10}{claim['says']}: here {ours}{expected(claim)}")
        if not claim["holds"]:
            lines.append(f"     {claim['reason']}")
    return lines


def expected(claim: dict[str, Any]) -> str:
    """The range of a claim, in words."""
    low, high = claim["low"], claim["high"]
    if low <= 0:
        return f" (at most {high:.2f})"
    return f" (at least {low:.2f})" if high >= 1e9 or math.isinf(high) else f" ({low:.2f} to {high:.2f})"
