"""`kvik eval compare`: models, or forms of one model, held against a reference. All arithmetic is in bench/judge*.

Only terminal matters live here: flags, the bar, the table. This file knows nothing of how anything is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kvik.cli.options import engine_options, json_option
from kvik.cli.results import POSITIVE, check_line, hand_over
from kvik.cli.session import read_text
from kvik.cli.terminal import human_bytes, is_terminal, note
from kvik.errors import ConfigError

HEAD = (
    f"{'':<4}{'perplexity':>11}{'change':>19}{'KL mean':>10}{'KL p99':>10}{'agree':>8}"
    f"{'disk':>10}{'weights':>10}{'peak':>10}{'TPOT':>11}{'speed':>8}"
)


@click.command("compare")
@click.argument("operands", metavar="A B [C ..]", nargs=-1, required=True)
@click.option("--text", "file", type=click.Path(path_type=Path), help="The text, UTF-8. Default: random tokens.")
@click.option("--tokens", type=POSITIVE, help="At most this many tokens of the text; without one, so many at random.")
@click.option("--window", type=click.IntRange(min=2), help="Tokens scored together. Default: 512, or the context.")
@click.option("--stride", type=POSITIVE, help="Tokens from window to window. Default: no overlap.")
@click.option("--tasks", "per_task", type=POSITIVE, help="Ask this many held-out questions of each task too.")
@click.option("--steps", type=POSITIVE, default=32, show_default=True, help="Steps of a decode that is timed.")
@click.option("--rounds", type=POSITIVE, default=5, show_default=True, help="Times each model decodes, in turn.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here.")
@engine_options
@json_option
def compare(
    operands: tuple[str, ...], file: Path | None, rounds: int, output: Path | None, as_json: bool, **given: Any
) -> None:
    """Hold models against the first: perplexity, divergence, agreement, size, speed, and answers with --tasks.

    A, B .. are models as every command takes them (box is the model in the box), each perhaps with options after an @
    that the others do not have: A@weights=int4,kv_dtype=int8. All are loaded at once and must have one vocabulary.
    """
    from kvik.bench.judge_operands import parse_operands
    from kvik.bench.judge_result import Comparison, judge
    from kvik.bench.measure import Repeat
    from kvik.bench.tasks import read_items

    engine = given.pop("engine")
    if engine["model"] is not None:
        raise ConfigError(f"model is {engine['model']!r}; models are named one after another, expected no --model")
    per_task, most = given.pop("per_task"), given.pop("tokens")
    asked = Comparison(
        parse_operands(operands, engine),
        read_text(file) if file is not None else None,
        max_tokens=most,
        items=read_items(limit=per_task) if per_task else (),
        **given,
    )
    repeat = Repeat(warmups=1, least=rounds, most=rounds)
    result = judge(asked, repeat, note, show_positions, show_answers=is_terminal(sys.stderr))
    hand_over(result, table, output=output, as_json=as_json)


@contextmanager
def show_positions(total: int) -> Iterator[Callable[[int], object]]:
    """A bar over the scored positions, on a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, desc="Positions", unit="tok", disable=not is_terminal(sys.stderr)) as bar:
        yield bar.update


def table(result: dict[str, Any]) -> list[str]:
    """A comparison for people: names first, as they may be long, then one line for each."""
    workload, judged = result["workload"], result["judged"]
    sides = list(judged["sides"].items())
    asked = any(side["tasks"] for _, side in sides)
    return [
        f"{workload['scored_tokens']} tokens in {workload['windows']} windows of {workload['window']}, text: "
        f"{workload['text']}; speed: 1 sequence at {workload['context']} tokens, {len(result['samples'])} rounds of "
        f"{workload['tokens_per_sample']} steps",
        *(f"  {letter(index)} = {label}" for index, (label, _) in enumerate(sides)),
        HEAD,
        *(row(letter(index), side) for index, (_, side) in enumerate(sides)),
        *(["", *(answers(letter(index), side) for index, (_, side) in enumerate(sides))] if asked else []),
        *(check_line(check) for check in result["checks"] if not check["passed"]),
    ]


def letter(index: int) -> str:
    """A, B, .. Z, then numbers."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def row(name: str, side: dict[str, Any]) -> str:
    """One model: what it lost, what it takes, how fast it is."""
    text, speed, memory = side["figures"]["text"], side["figures"]["speed"], side["memory_bytes"]
    change = f"{text['perplexity_change_percent']:+.2f} +- {text['perplexity_change_error_percent']:.2f} %"
    disk, peak = side["disk_bytes"], side["load_peak_bytes"]
    return (
        f"{name:<4}{text['perplexity']:>11.4f}{change:>19}{text['divergence_mean']:>10.2e}"
        f"{text['divergence_p99']:>10.2e}{100 * text['agreement']:>6.1f} %"
        f"{'-' if disk is None else human_bytes(disk):>10}{human_bytes(memory['weights']):>10}"
        f"{human_bytes(max(memory['total'], peak or 0)):>10}"
        f"{1000 * speed['tpot_s']['median']:>8.3f} ms{speed['times_as_fast']['median']:>7.2f}x"
    )


def answers(name: str, side: dict[str, Any]) -> str:
    """One model's answers to questions, and what it gained and lost."""
    tasks, figures = side["tasks"], side["figures"]["tasks"]
    return (
        f"{name:<4}{tasks['right']} of {tasks['count']} answers right, {100 * tasks['accuracy']:.1f} %; "
        f"{100 * figures['difference']:+.1f} +- {100 * figures['difference_error']:.1f} %: "
        f"{tasks['gained']} gained, {tasks['lost']} lost"
    )
