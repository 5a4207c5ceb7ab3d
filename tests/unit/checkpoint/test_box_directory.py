"""Where the model in the box is, and what happens where the package came without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import byte_tokenizer

from kvik import LLM, SamplingParams
from kvik.checkpoint import BOX_NAME, DummyCheckpoint, box, box_directory, open_checkpoint, write_checkpoint
from kvik.cli.main import run
from kvik.errors import CheckpointError


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A box with a tiny model in it."""
    write_checkpoint(DummyCheckpoint("tiny-qwen3"), tmp_path / "model")
    monkeypatch.setattr(box, "BOX", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A box as it is before the weights are in it."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(box, "BOX", tmp_path)


def test_the_box_lies_inside_the_package() -> None:
    assert box.BOX.parts[-3:] == ("kvik", "box", "model")
    assert box.BOX.parent.is_dir()


def test_no_name_is_the_model_in_the_box(packed: Path) -> None:
    opened = open_checkpoint(None)
    assert (opened.name, opened.directory) == (BOX_NAME, packed) == (BOX_NAME, box_directory())


def test_llm_without_a_name_loads_it(packed: Path) -> None:
    byte_tokenizer(packed)
    options = {"backend": "reference", "max_model_len": 64, "max_num_seqs": 2}
    greedy = SamplingParams(temperature=0, max_tokens=4)
    with LLM(**options) as ours, LLM(str(packed), **options) as named:
        assert ours.generate("abc", greedy)[0].outputs == named.generate("abc", greedy)[0].outputs


@pytest.mark.usefixtures("empty")
def test_an_empty_box_says_so_and_what_to_name_instead() -> None:
    with pytest.raises(CheckpointError, match=r"no model in its box .*dummy:qwen3-0\.6b"):
        open_checkpoint(None)
    with pytest.raises(CheckpointError, match="no model in its box"):
        LLM()


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("args", [["generate", "Hi"], ["chat"], ["eval", "tasks"]])
def test_on_the_command_line_it_is_one_line(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kvik: error: no model is named")
    assert captured.err.count("\n") == 1
