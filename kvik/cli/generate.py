"""`kvik generate`: one prompt to streamed text, or a file of prompts to JSON lines.

One text is printed whole, prompt and continuation; a model without a tokenizer (dummy:NAME) takes and prints token
ids. This file knows nothing of how text is made.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvik.cli.options import engine_options, json_option, sampling_options
from kvik.cli.prompt_file import read_prompts
from kvik.cli.records import output_record
from kvik.cli.session import open_llm, stream
from kvik.cli.terminal import error_line, is_terminal, json_line, note, show

if TYPE_CHECKING:
    from kvik import LLM
    from kvik.request import CompletionOutput, RequestOutput, SamplingParams

DEFAULT_TOKENS = (1, 2, 3, 4, 5, 6, 7, 8)
"""The prompt of a model without text when none is given."""
MAX_TOKENS = 200
"""Enough for a paragraph or two; an answer that ends by itself is shorter."""


class TokenIds(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """Token ids with commas between them, such as 1,2,3."""

    name = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """A list of whole numbers; whether the model has them is not known here."""
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of token ids; expected numbers such as 1,2,3", param, ctx)


@click.command("generate")
@click.argument("prompt", required=False)
@click.option("--prompt-token-ids", type=TokenIds(), help="The prompt as token ids, such as 1,2,3.")
@click.option(
    "--input", "source", type=click.Path(path_type=Path), help="A file of prompts: one a line, or JSON lines."
)
@click.option("--output", "target", type=click.Path(path_type=Path), help="With --input: write here, not to stdout.")
@click.option("--echo/--no-echo", default=True, show_default=True, help="Print the prompt before its continuation.")
@sampling_options(max_tokens=MAX_TOKENS)
@engine_options
@json_option
def command(
    prompt: str | None,
    prompt_token_ids: list[int] | None,
    source: Path | None,
    target: Path | None,
    echo: bool,
    params: SamplingParams,
    engine: dict[str, Any],
    as_json: bool,
) -> int:
    """Continue PROMPT, or standard input, or every prompt of a file.

    The text is printed as it is made, the prompt first (--no-echo leaves it out). --input takes plain text with one
    prompt a line, or JSON lines such as {"prompt": "Once"} and {"prompt_token_ids": [1, 2]}; the answers are JSON
    lines in the same order.
    """
    check_usage(prompt, prompt_token_ids, source, target)
    prompts = read_prompts(source) if source else []
    with open_llm(engine) as llm:
        if source:
            return answer_file(llm, prompts, params, target)
        answer_one(llm, choose_prompt(llm, prompt, prompt_token_ids), params, echo=echo, as_json=as_json)
        return 0


def check_usage(prompt: str | None, ids: list[int] | None, source: Path | None, target: Path | None) -> None:
    """Refuse two prompts at once, and an output file for a single one."""
    if sum(given is not None for given in (prompt, ids, source)) > 1:
        raise click.UsageError("PROMPT, --prompt-token-ids and --input exclude each other; give one of them")
    if target is not None and source is None:
        raise click.UsageError("--output needs --input")


def choose_prompt(llm: LLM, prompt: str | None, ids: list[int] | None) -> str | list[int]:
    """What was given; else a few tokens for a model without text; else standard input, less its last line break."""
    if ids is not None:
        return ids
    if prompt is not None:
        return prompt
    if llm.tokenizer is None:
        return list(DEFAULT_TOKENS)
    if is_terminal(sys.stdin):
        note("the prompt comes from standard input; end it with Ctrl-D")
    return sys.stdin.read().removesuffix("\n")


def answer_one(llm: LLM, prompt: str | list[int], params: SamplingParams, *, echo: bool, as_json: bool) -> None:
    """Print one answer: streamed, or complete if there are several choices or --json asks for data."""
    head = prompt if echo and isinstance(prompt, str) else ""
    if as_json:
        click.echo(json_line(timed_record(stream(llm, prompt, params))))
    elif params.n == 1:
        show_live(stream(llm, prompt, params), head, has_text=llm.tokenizer is not None)
    else:
        for choice in llm.generate(prompt, params)[0].outputs:
            click.echo(f"[{choice.index}] {head}{as_text(choice, llm.tokenizer is not None)}")


def show_live(outputs: Iterable[RequestOutput], head: str, *, has_text: bool) -> None:
    """Write each output's new text. The prompt waits for the first, so that a refused one prints nothing."""
    shown = 0
    for output in outputs:
        text = head + as_text(output.outputs[0], has_text)
        show(text[shown:])
        shown = len(text)
    show("\n")


def as_text(choice: CompletionOutput, has_text: bool) -> str:
    """The text of a choice so far; for a model without text its token ids."""
    return choice.text if has_text else " ".join(map(str, choice.token_ids))


def timed_record(outputs: Iterable[RequestOutput]) -> dict[str, Any]:
    """The last output as data, with `ttft_s` and `seconds`: until the first and the last token."""
    started = time.perf_counter()
    moments = [started]
    record: dict[str, Any] = {}
    for output in outputs:
        moments.append(time.perf_counter())
        record = output_record(output) if output.finished else record
    return record | {"ttft_s": moments[min(1, len(moments) - 1)] - started, "seconds": moments[-1] - started}


def answer_file(llm: LLM, prompts: list[Any], params: SamplingParams, target: Path | None) -> int:
    """Answer every prompt; one that fails has an `error` in its line and makes the exit status 2."""
    with open(target, "w", encoding="utf-8") if target else nullcontext(sys.stdout) as sink:
        outputs = llm.generate(prompts, params)
        for index, output in enumerate(outputs):
            sink.write(json_line({"index": index} | output_record(output)) + "\n")
    failed = sum(output.error is not None for output in outputs)
    if failed:
        error_line(f"{failed} of {len(outputs)} prompts failed; their lines say why")
    return 2 if failed else 0
