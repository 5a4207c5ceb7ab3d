"""`kvik eval ppl MODEL --text FILE`: perplexity. This file knows nothing of the arithmetic, which is in bench/."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvik.cli.options import engine_options, json_option
from kvik.cli.session import open_llm, read_text, require_tokenizer
from kvik.cli.terminal import is_terminal, json_line
from kvik.errors import InvalidRequestError
from kvik.request import SamplingParams

if TYPE_CHECKING:
    from kvik import LLM


@click.group("eval")
def command() -> None:
    """Evaluate a model."""


@command.command("ppl")
@click.argument("model_argument", metavar="[MODEL]", required=False)
@click.option("--text", "file", type=click.Path(path_type=Path), required=True, help="The text, UTF-8.")
@click.option("--window", type=click.IntRange(min=2), help="Tokens scored together. Default: the model's context.")
@engine_options
@json_option
def ppl(model_argument: str | None, file: Path, window: int | None, engine: dict[str, Any], as_json: bool) -> None:
    """Perplexity of a text, with its token count and standard error.

    The text is cut into windows that do not overlap; every token is scored given those before it in its window. A
    model with a beginning-of-text token gets it at the start of each window.
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
        )
    data = {"model": engine["model"], "text": str(file), **result.as_dict()}
    if as_json:
        click.echo(json_line(data))
        return
    click.echo(
        f"perplexity {result.perplexity:.4f} +- {result.perplexity_error:.4f} over {result.tokens} tokens "
        f"(nll {result.nll:.5f} +- {result.standard_error:.5f}; {result.windows} windows of {result.window})"
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
