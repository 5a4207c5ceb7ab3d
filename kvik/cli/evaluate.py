"""`kvik eval`: the perplexity of a text, accuracy on held-out tasks, and models held against each other.

All arithmetic is in bench/; `compare` has a file of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvik.cli.eval_compare import compare
from kvik.cli.options import engine_options, json_option
from kvik.cli.session import open_llm, read_text, require_chat_template, require_tokenizer
from kvik.cli.terminal import is_terminal, json_line
from kvik.errors import InvalidRequestError
from kvik.request import SamplingParams

if TYPE_CHECKING:
    from kvik import LLM


@click.group("eval")
def command() -> None:
    """Evaluate a model: the one named, or the model in the box."""


command.add_command(compare)


@command.command("ppl")
@click.argument("model_argument", metavar="[MODEL]", required=False)
@click.option("--text", "file", type=click.Path(path_type=Path), required=True, help="The text, UTF-8.")
@click.option("--window", type=click.IntRange(min=2), help="Tokens scored together. Default: the model's context.")
@click.option("--stride", type=click.IntRange(min=1), help="Tokens from window to window. Default: no overlap.")
@engine_options
@json_option
def ppl(
    model_argument: str | None,
    file: Path,
    window: int | None,
    stride: int | None,
    engine: dict[str, Any],
    as_json: bool,
) -> None:
    """Perplexity of a text, with its token count, standard error and bits per byte.

    The text is cut into windows; every token is scored once, given those before it in the first window that has it. A
    smaller stride gives tokens more to look back on, and takes longer. A model with a beginning-of-text token gets it
    at the start of each window. Bits per byte compare models with different tokenizers.
    """
    from kvik.bench.perplexity import measure_perplexity

    text = read_text(file)
    engine["model"] = model_argument or engine["model"]
    with open_llm(engine) as llm:
        tokenizer = require_tokenizer(llm)
        result = measure_perplexity(
            tokenizer.encode(text, add_special_tokens=False),
            choose_window(window, llm.engine.memory.max_model_len - 1),
            tokenizer.encode("", add_special_tokens=True),
            lambda windows: score_windows(llm, windows),
            stride=stride,
            text_bytes=len(text.encode()),
        )
        data = {"model": llm.engine.memory.model, "text": str(file), **result.as_dict()}
    if as_json:
        click.echo(json_line(data))
        return
    click.echo(
        f"perplexity {result.perplexity:.4f} +- {result.perplexity_error:.4f} over {result.tokens} tokens "
        f"(nll {result.nll:.5f} +- {result.standard_error:.5f}, {result.bits_per_byte:.4f} bits per byte; "
        f"{result.windows} windows of {result.window}, stride {result.stride})"
    )


def choose_window(window: int | None, longest: int) -> int:
    """The window asked for, or the longest: one less than the context, as an answer takes a token."""
    if window is not None and window > longest:
        raise InvalidRequestError(f"window is {window}; expected at most {longest}", param="window")
    return window or longest


def score_windows(llm: LLM, windows: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of all tokens but the first of each window. Raises what made a window fail."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    outputs = llm.generate(windows, params, use_tqdm=is_terminal(sys.stderr))
    for output in outputs:
        if output.error is not None:
            raise output.error
    return [[entry.logprob for entry in output.prompt_logprobs or () if entry is not None] for output in outputs]


@command.command("tasks")
@click.argument("model_argument", metavar="[MODEL]", required=False)
@click.option("--task", "names", multiple=True, metavar="NAME", help="Only this task; may be given several times.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many questions of each task.")
@click.option(
    "--file", type=click.Path(path_type=Path), help="Questions as JSON lines. Default: those of the model in the box."
)
@click.option("--wrong", type=click.Path(path_type=Path), help="Write wrong answers here, as JSON lines.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here.")
@engine_options
@json_option
def tasks(
    model_argument: str | None,
    names: tuple[str, ...],
    limit: int | None,
    file: Path | None,
    wrong: Path | None,
    output: Path | None,
    engine: dict[str, Any],
    as_json: bool,
) -> None:
    """Accuracy on held-out tasks: questions with one right answer, asked through the chat template at temperature 0.

    An answer is right if it matches exactly: the text, for sums the last number in it, for records the JSON object.
    The questions that come with Kvik were held out when the model in the box was trained; with other models they serve
    to hold one form of weights against another. A line of FILE is {"task": .., "messages": [..], "answer": ..}, and
    perhaps "score": exact, number or json.
    """
    from kvik.bench.accuracy import measure_tasks, tasks_result, write_result, write_wrong
    from kvik.bench.tasks import SHIPPED, read_items

    items = read_items(file or SHIPPED, names, limit)
    engine["model"] = model_argument or engine["model"]
    with open_llm(engine) as llm:
        require_chat_template(llm, "expected one: tasks are questions")
        judged = measure_tasks(llm, items, progress=is_terminal(sys.stderr))
        result = tasks_result(llm, judged)
    if wrong is not None:
        write_wrong(judged, wrong)
    if output is not None:
        write_result(result, output)
    click.echo(json_line(result) if as_json else "\n".join(judged.lines()))
