"""`kvik bench suite`: the whole test plan in one file. This file knows nothing of how its parts are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvik.cli.ladder import is_default, table
from kvik.cli.options import engine_options
from kvik.cli.results import POSITIVE, repeat_options_with, repetition
from kvik.cli.results import table as simple_table
from kvik.cli.terminal import json_line, note


@click.command()
@click.option("--part", "parts", multiple=True, metavar="NAME", help="Only this part; may be given several times.")
@click.option("--quick", is_flag=True, help="Small and once: asserts identities and answers, not speed.")
@click.option("--num-prompts", type=POSITIVE, default=32, show_default=True, help="Requests at once.")
@click.option("--input-len", type=POSITIVE, default=512, show_default=True, help="Tokens of a prompt.")
@click.option("--output-len", type=POSITIVE, default=128, show_default=True, help="Tokens of an answer.")
@engine_options
@repeat_options_with(warmups=1, repetitions=5)
def suite(
    parts: tuple[str, ...],
    quick: bool,
    num_prompts: int,
    input_len: int,
    output_len: int,
    engine: dict[str, Any],
    warmups: int,
    repetitions: int,
    spread: float,
    output: Path | None,
    as_json: bool,
) -> None:
    """The whole plan: prefill, decode, throughput, latency, memory by component, prefix-cache gain, mixed against
    separate scheduling, graph capture, strong and weak scaling over threads, code statistics.

    The plan's own sizes are 256 requests of 512 tokens in and 512 out. What does not apply to this machine is named
    with the reason.
    """
    from kvik.bench.suite.contests import Plan
    from kvik.bench.suite.scenes import QUICK, Lengths
    from kvik.bench.suite.suite import PARTS, fitted, run_suite, write_suite
    from kvik.runners.native.machine import cores

    engine = {name: value for name, value in engine.items() if not is_default(name, value)}
    lengths = QUICK if quick else Lengths(num_prompts, input_len, output_len)
    plan = Plan(engine, fitted(lengths, engine), engine.get("threads") or cores())
    repeat = repetition(0, 1, spread) if quick else repetition(warmups, repetitions, spread)
    result = run_suite(parts or PARTS, plan, repeat, note, quick=quick)
    if output is not None:
        write_suite(result, output)
    click.echo(json_line(result) if as_json else "\n".join(lines(result)))


def lines(suite: dict[str, Any]) -> list[str]:
    """The suite for people: every part, what does not apply, the code."""
    found = []
    for name, part in suite["parts"].items():
        found += [f"== {name}", *(table(part) if "sides" in part else simple_table(part)), *extra(part), ""]
    found += [f"== {name}: does not apply: {why}" for name, why in suite["not_applicable"].items()]
    if suite["code"]:
        code = suite["code"]
        found += [
            f"== code: {code['files']} files, {code['total_loc']} lines, {code['function_count']} functions of "
            f"{code['mean_function_lines']:.1f} lines (longest {code['longest_function_lines']}), "
            f"{code['class_count']} classes, complexity {code['avg_complexity']:.2f} (most {code['max_complexity']})"
        ]
    return found


def extra(part: dict[str, Any]) -> list[str]:
    """What a part has beside its sides."""
    found = []
    if "saving" in part:
        saved = part["saving"]
        share = 100 * saved["found_in_cache"] / saved["prompt_tokens"]
        found.append(
            f"  {saved['found_in_cache']} of {saved['prompt_tokens']} prompt tokens found in the cache "
            f"({share:.2f} %), {saved['computed_less']} computed less"
        )
    for side, share in part.get("efficiency", {}).items():
        found.append(f"  {side}: efficiency {100 * share:.0f} %")
    return found
