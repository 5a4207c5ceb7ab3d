"""`kvik chat`: a conversation in the terminal, through the model's own chat template.

Holds the list of messages and nothing else; it knows nothing of templates or tokens.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from kvik.cli.options import engine_options, sampling_options
from kvik.cli.session import open_llm, require_chat_template, require_tokenizer, stream, suited
from kvik.cli.terminal import dim, error_line, is_terminal, note, show
from kvik.errors import InvalidRequestError

if TYPE_CHECKING:
    from kvik import LLM
    from kvik.request import SamplingParams

HELP = "/reset forgets the conversation, /system TEXT sets the system message and forgets the rest, /exit leaves"
NOT_HERE = ("n", "min_tokens", "ignore_eos", "logprobs")

Message = dict[str, str]


@click.command("chat")
@click.option("--system", help="System message of the conversation.")
@sampling_options(without=NOT_HERE, max_tokens=1024, temperature=0.7)
@engine_options
def command(system: str | None, params: SamplingParams, engine: dict[str, Any]) -> None:
    """Hold a conversation. /reset, /system TEXT and /exit are commands; end of input leaves too.

    Without --model the model in the box answers. Flags of sampling that are left alone follow the model's
    generation_config.json where it says something; the model in the box has temperature 0 there.
    """
    with open_llm(engine) as llm:
        require_chat_template(llm, "use `kvik generate` for it")
        Conversation(llm, suited(params, llm), system).run()


class Conversation:
    """The messages so far and the loop that extends them."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self._messages: list[Message] = []
        self.reset(system)

    def reset(self, system: str | None) -> None:
        """Forget everything but a system message."""
        self._system = system
        self._messages = [{"role": "system", "content": system}] if system else []

    def run(self) -> None:
        """Read a line, answer it, until the end of input or /exit."""
        if is_terminal(sys.stdin):
            _edit_lines()
            note(HELP)
        while True:
            try:
                line = input("> " if is_terminal(sys.stdin) else "").strip()
            except EOFError:
                return
            if line == "/exit":
                return
            if line.startswith("/"):
                self.obey(line)
            elif line:
                self.answer(line)

    def obey(self, line: str) -> None:
        """A line that is a command."""
        name, _, rest = line.partition(" ")
        if name == "/reset":
            self.reset(self._system)
        elif name == "/system":
            self.reset(rest.strip() or None)
        else:
            note(f"{name} is no command: {HELP}")

    def answer(self, line: str) -> None:
        """Stream the answer to one message; a message that cannot be answered is taken back."""
        self._messages.append({"role": "user", "content": line})
        try:
            text = self._stream()
        except InvalidRequestError as error:
            self._messages.pop()
            error_line(f"{error} (/reset starts over)")
            return
        self._messages.append({"role": "assistant", "content": text})

    def _stream(self) -> str:
        prompt = require_tokenizer(self._llm).encode_chat(self._messages)
        started = time.perf_counter()
        first, text, count = started, "", 0
        for output in stream(self._llm, prompt, self._params):
            choice = output.outputs[0]
            if not count:
                first = time.perf_counter()
            show(choice.text[len(text) :])
            text, count = choice.text, len(choice.token_ids)
        show("\n")
        if is_terminal(sys.stdout):
            click.echo(dim(speed(count, first - started, time.perf_counter() - first), sys.stdout))
        return text


def speed(tokens: int, ttft: float, rest: float) -> str:
    """Tokens per second after the first one, and the wait for it."""
    rate = f"{(tokens - 1) / rest:.1f} tokens/s, " if tokens > 1 and rest > 0 else ""
    return f"{tokens} tokens, {rate}first after {1000 * ttft:.0f} ms"


def _edit_lines() -> None:
    """Arrow keys and history in `input`, where Python was built with them."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
