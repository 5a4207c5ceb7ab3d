"""How commands end: exit statuses, one line of error, nothing from Python on the screen."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import click
import pytest

from kvik import __version__
from kvik.cli import main, terminal
from kvik.cli.main import COMMANDS, program, run
from kvik.errors import CheckpointError, NotEnoughMemoryError

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def ends_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Runs a command that raises."""

    def run_raising(error: BaseException) -> int:
        @click.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(program, "get_command", lambda ctx, name: command)
        return run(["anything"])

    return run_raising


def test_version(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"kvik {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: Capture) -> None:
    assert run([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: kvik {name}")


def test_help_lists_every_command_without_importing_any(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "importlib", None)
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name}" in shown for name in COMMANDS)


@pytest.mark.parametrize(
    "args", [["nonsense"], ["generate", "--nonsense"], ["generate", "--max-tokens", "x"], ["info", "--threads", "0"]]
)
def test_wrong_usage_is_one_line_and_status_2(args: list[str], capsys: Capture) -> None:
    assert run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kvik: error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CheckpointError("a\nlong   story"), "kvik: error: a long story\n"),
        (NotEnoughMemoryError("needs 4 GiB"), "kvik: error: needs 4 GiB\n"),
        (MemoryError(), "kvik: error: out of memory\n"),
        (FileNotFoundError(2, "No such file or directory", "x"), "kvik: error: x: No such file or directory\n"),
    ],
)
def test_errors_are_one_line_and_status_2(
    ends_with: Callable[[BaseException], int], capsys: Capture, error: BaseException, line: str
) -> None:
    assert ends_with(error) == 2
    assert capsys.readouterr().err == line


def test_a_bug_is_not_hidden(ends_with: Callable[[BaseException], int]) -> None:
    with pytest.raises(ZeroDivisionError):
        ends_with(ZeroDivisionError())


def test_interrupt_is_status_130_and_says_nothing(ends_with: Callable[[BaseException], int], capsys: Capture) -> None:
    assert ends_with(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.strip() == ""


def test_a_warning_is_one_line_without_its_place(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    @click.command()
    def command() -> None:
        warnings.simplefilter("always")
        warnings.warn("no compiler\nwas found", stacklevel=1)

    monkeypatch.setattr(program, "get_command", lambda ctx, name: command)
    before = warnings.showwarning
    assert run(["anything"]) == 0
    assert capsys.readouterr().err == "kvik: note: no compiler was found\n"
    assert warnings.showwarning is before


@pytest.mark.parametrize("colour", [True, False])
def test_letters_are_dim_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, colour: bool) -> None:
    screen: Any = type("Screen", (), {"isatty": lambda self: True})()
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    assert (terminal.dim("x", screen) != "x") is colour
    assert terminal.dim("x", io.StringIO()) == "x"
