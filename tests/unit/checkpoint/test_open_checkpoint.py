"""The door of the room: which spelling of a model leads where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvik.checkpoint import (
    DummyCheckpoint,
    GgufCheckpoint,
    HuggingFaceCheckpoint,
    open_checkpoint,
    write_checkpoint,
)
from kvik.checkpoint.gguf_write import write_gguf
from kvik.errors import CheckpointError


def test_a_dummy_takes_the_seed() -> None:
    opened, made = open_checkpoint("dummy:tiny-llama", seed=5), DummyCheckpoint("tiny-llama", seed=5)
    np.testing.assert_array_equal(opened.tensor("embed").data, made.tensor("embed").data)
    with pytest.raises(CheckpointError, match="no dummy model ''; expected one of"):
        open_checkpoint("dummy:")


def test_a_directory_goes_before_a_hub_id_of_the_same_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(DummyCheckpoint("tiny-llama"), tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    opened = open_checkpoint("org/name")
    assert isinstance(opened, HuggingFaceCheckpoint)
    assert opened.name == "org/name"


def test_a_hub_id_is_downloaded_and_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    write_checkpoint(DummyCheckpoint("tiny-llama"), tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: str(tmp_path))
    opened = open_checkpoint("org/name@main")
    assert (opened.name, opened.directory) == ("org/name@main", tmp_path)


def test_a_gguf_file_is_told_by_its_name(tmp_path: Path) -> None:
    for model in ("model.gguf", "/some/where/model-Q4_K_M.GGUF", "org/name.gguf"):
        with pytest.raises(CheckpointError, match="no such file"):
            open_checkpoint(model)
    path = tmp_path / "model.GGUF"
    write_gguf(path, DummyCheckpoint("tiny-llama"), "Q8_0")
    opened = open_checkpoint(str(path))
    assert isinstance(opened, GgufCheckpoint)
    assert opened.name == str(path)


@pytest.mark.parametrize("model", ["", "/no/such/place", "./here", "../up", "name", "a/b/c", "~/x", "x" * 300, "a\0b"])
def test_what_is_nothing_says_what_a_model_can_be(model: str) -> None:
    with pytest.raises(CheckpointError, match=r"no such directory; expected a model directory|is no path"):
        open_checkpoint(model)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a file; expected the directory it lies in"):
        open_checkpoint(str(tmp_path / "config.json"))


def test_opening_the_room_imports_no_hub_and_no_torch() -> None:
    code = "import sys, kvik.checkpoint; print([m for m in ('huggingface_hub', 'torch', 'tqdm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
