"""The README's transcript: which questions it asks, and how a shell would take them back."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import Any

import pytest

from kvik.bench.tasks import read_items
from tools.box import transcript
from tools.box.transcript import TASKS, WIDTH, chosen, shown


def test_ten_questions_of_ten_tasks_all_held_out() -> None:
    items = chosen()
    assert [item.task for item in items] == list(TASKS)
    assert len(set(TASKS)) == 10
    assert set(map(str, items)) <= set(map(str, read_items()))


def test_a_shell_reads_back_what_was_asked() -> None:
    for question in [item.messages[-1]["content"] for item in chosen()] + ["it's $5", 'say "a b"', "so `ls` \\ !"]:
        line, answer = shown(question, "Yes.").split("\n")
        assert shlex.split(line) == ["$", "kvik", "generate", question]
        assert answer == "Yes."


def test_long_answers_are_broken_between_words_and_keep_their_lines() -> None:
    _, *lines = shown("q", "a b " * 100 + "\n\n  end").split("\n")
    assert max(map(len, lines)) <= WIDTH
    assert " ".join(lines).split() == ["a", "b"] * 100 + ["end"]
    assert lines[-2] == ""


def test_a_wrong_answer_stays_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "kvik", "generate"]
        item = next(item for item in chosen() if item.messages[-1]["content"] == command[4])
        said = item.answer if item.task != "sorting" else "a, b"
        return subprocess.CompletedProcess(command, 0, said + "\n")

    monkeypatch.setattr(transcript.subprocess, "run", answer)
    monkeypatch.setattr(sys, "argv", ["transcript"])
    with pytest.raises(SystemExit, match=r"wrong answers:\nsorting: .* has 'a, b', not"):
        transcript.main()
    block = capsys.readouterr().out
    assert block.startswith("```console\n$ kvik generate ")
    assert block.endswith("\n```\n")
    assert block.count("\n$ kvik generate ") == 10
    assert "\na, b\n" in block
