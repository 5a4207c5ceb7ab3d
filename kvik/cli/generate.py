"""`kvik generate`: one prompt to streamed text, or a file of prompts to JSON lines.

A text is continued and printed whole; a question, which a prompt is to the model in the box and with --chat, goes
through the chat template, and its answer is printed alone. A model without a tokenizer (dummy:NAME) takes and prints
token ids. This file knows nothing of how text is made.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvik.cli.options import engine_options, json_option, sampling_options
from kvik.cli.prompt_file import read_prompts
from kvik.cli.records import output_record
from kvik.cli.session import open_llm, require_chat_template, stream, suited
from kvik.cli.terminal import error_line, is_terminal, json_line, note, show
from kvik.errors import InvalidRequestError, KvikError

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
@click.option(
    "--chat/--no-chat",
    "chat",
    default=None,
    help="Ask the prompt as a question, through the chat template. Default: yes for the model in the box, else no.",
)
@click.option(
    "--echo/--no-echo", default=None, help="Print the prompt first. Default: yes, unless it is asked as a question."
)
@sampling_options(max_tokens=MAX_TOKENS)
@engine_options
@json_option
def command(
    prompt: str | None,
    prompt_token_ids: list[int] | None,
    source: Path | None,
    target: Path | None,
    chat: bool | None,
    echo: bool | None,
    params: SamplingParams,
    engine: dict[str, Any],
    as_json: bool,
) -> int:
    """Continue PROMPT, or standard input, or every prompt of a file; the model in the box answers it.

    The text is printed as it is made, the prompt first (--no-echo leaves it out). Without --model, PROMPT is a
    question to the model in the box: its answer is printed alone. --chat asks any model with a chat template in that
    way, --no-chat continues the text with any. Flags of sampling that are left alone follow the model's
    generation_config.json where it says something; the model in the box has temperature 0 there.

    --input takes plain text with one prompt a line, or JSON lines such as {"prompt": "Once"} and {"prompt_token_ids":
    [1, 2]}; the answers are JSON lines in the same order.
    """
    check_usage(prompt, prompt_token_ids, source, target, chat)
    if chat is None:
        chat = engine["model"] is None and prompt_token_ids is None
    prompts = read_prompts(source) if source else []
    with open_llm(engine) as llm:
        params = suited(params, llm)
        if chat:
            require_chat_template(llm, "leave out --chat")
        if source:
            return answer_file(llm, prompts, params, target, chat=chat)
        job = Job(choose_prompt(llm, prompt, prompt_token_ids), chat, not chat if echo is None else echo)
        answer_one(llm, job, params, as_json=as_json)
        return 0


@dataclass(frozen=True)
class Job:
    """One prompt, whether it is asked as a question, and whether it is printed."""

    prompt: str | list[int]
    chat: bool
    echo: bool

    @property
    def head(self) -> str:
        """What is printed before the answer."""
        if not self.echo or not isinstance(self.prompt, str):
            return ""
        return f"{self.prompt}\n" if self.chat else self.prompt


def check_usage(
    prompt: str | None, ids: list[int] | None, source: Path | None, target: Path | None, chat: bool | None
) -> None:
    """Refuse two prompts at once, an output file for a single one, and token ids as a question."""
    if sum(given is not None for given in (prompt, ids, source)) > 1:
        raise click.UsageError("PROMPT, --prompt-token-ids and --input exclude each other; give one of them")
    if target is not None and source is None:
        raise click.UsageError("--output needs --input")
    if chat and ids is not None:
        raise click.UsageError("--chat asks a text; --prompt-token-ids are token ids, which are continued")


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


def question(prompt: Any) -> list[dict[str, str]]:
    """A prompt as the conversation that asks it. Raises InvalidRequestError for what is no text or says nothing."""
    if isinstance(prompt, dict) and prompt.keys() == {"prompt"}:
        prompt = prompt["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidRequestError(
            f"prompt is {prompt!r:.80}; expected a question (--no-chat takes more)", param="prompt"
        )
    return [{"role": "user", "content": prompt}]


def answer_one(llm: LLM, job: Job, params: SamplingParams, *, as_json: bool) -> None:
    """Print one answer: streamed, or complete if there are several choices or --json asks for data."""
    prompt, has_text = job.prompt, llm.tokenizer is not None
    if job.chat:
        prompt = require_chat_template(llm, "").encode_chat(question(prompt))
    if as_json:
        asked = {"prompt": job.prompt} if job.chat else {}
        click.echo(json_line(timed_record(stream(llm, prompt, params)) | asked))
    elif params.n == 1:
        show_live(stream(llm, prompt, params), job.head, has_text=has_text)
    else:
        for choice in llm.generate(prompt, params)[0].outputs:
            click.echo(f"[{choice.index}] {job.head}{as_text(choice, has_text)}")


def show_live(outputs: Iterable[RequestOutput], head: str, *, has_text: bool) -> None:
    """Write each output's new text. The prompt waits for the first, so that a refused one prints nothing, and one that
    fails later ends its line.
    """
    shown = 0
    try:
        for output in outputs:
            answer = as_text(output.outputs[0], has_text)
            if answer or output.error is None:
                text = head + answer
                show(text[shown:])
                shown = len(text)
    except KvikError:
        if shown:
            show("\n")
        raise
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


def answer_file(llm: LLM, prompts: list[Any], params: SamplingParams, target: Path | None, *, chat: bool) -> int:
    """Answer every prompt; one that fails has an `error` in its line and makes the exit status 2."""
    conversations = [question(prompt) for prompt in prompts] if chat else []
    with open(target, "w", encoding="utf-8") if target else nullcontext(sys.stdout) as sink:
        outputs = llm.chat(conversations, params) if chat else llm.generate(prompts, params)
        for index, output in enumerate(outputs):
            asked = {"prompt": conversations[index][0]["content"]} if chat else {}
            sink.write(json_line({"index": index} | output_record(output) | asked) + "\n")
    failed = sum(output.error is not None for output in outputs)
    if failed:
        error_line(f"{failed} of {len(outputs)} prompts failed; their lines say why")
    return 2 if failed else 0
