"""The command `kvik`: finds the subcommand, runs it, and turns every failure into one line and an exit status.

0 is success, 2 a bad value or any KvikError, 130 Ctrl-C. Subcommands are imported when they are asked for, so that
`kvik --help` starts at once. This file knows nothing of what any subcommand does.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Mapping, Sequence

import click

from kvik import __version__
from kvik.cli.terminal import error_line, warn_in_a_line
from kvik.errors import KvikError

COMMANDS = {
    "generate": ("kvik.cli.generate", "Continue a prompt, or a file of prompts."),
    "chat": ("kvik.cli.chat", "Hold a conversation in the terminal."),
    "serve": ("kvik.cli.serve", "Serve a model over HTTP in the form of OpenAI's API."),
    "info": ("kvik.cli.info", "Describe this machine, the kernels chosen, and a model's memory plan."),
    "bench": ("kvik.cli.bench", "Measure: decode, prefill, roofline; verify a result file."),
    "plan": ("kvik.cli.plan", "Say how many replicas a load would need, in simulated time."),
    "advise": ("kvik.cli.advise", "Say what limits a load, and which option to change."),
    "quantize": ("kvik.cli.quantize", "Write a model in fewer bits: GPTQ, AWQ, INT8."),
    "eval": ("kvik.cli.evaluate", "Evaluate a model: answers to held-out tasks, perplexity of a text."),
}
INTERRUPTED = 130
FAILED = 2


class LazyGroup(click.Group):
    """A group whose commands are named in advance and imported when used."""

    def __init__(self, *args: object, lazy: Mapping[str, tuple[str, str]], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now; None if there is none."""
        if cmd_name not in self.lazy:
            return None
        command: click.Command = importlib.import_module(self.lazy[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.lazy.items()])


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="kvik %(version)s")
def program() -> None:
    """Kvik: a large-language-model inference engine."""


def run(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status. Prints at most one line of error, never a traceback."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn_in_a_line
            status = program.main(args=args, prog_name="kvik", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as shown:
        click.echo(shown.format_message(), err=True)
        return FAILED
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        return _silence()
    except (KvikError, MemoryError) as error:
        return _fail(str(error) or "out of memory")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _fail(message: str) -> int:
    error_line(message)
    return FAILED


def _silence() -> int:
    """The reader of our output has gone: drop what is still buffered, so that the interpreter's own flush is quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run())
