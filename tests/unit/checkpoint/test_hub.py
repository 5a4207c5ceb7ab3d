"""Hub ids: which spellings are one, what is asked of the hub, and one clear error for whatever it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvik.checkpoint.hub import download, is_hub_id
from kvik.errors import CheckpointError, UnsupportedModelError

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "a/b", "org/name@main", "org/na.me_1@refs/pr/3", "org/n@v1.0"])
def test_hub_ids(model: str) -> None:
    assert is_hub_id(model)


NO_HUB_IDS = (
    *("", "name", "/name", "org/", "a/b/c", "../name", "org/..", "./name", "org/na me", "org/name@", "org/name@../x"),
    *("org/.name", "-org/name", "org/name-", "or--g/name", "org\\name", "org/name\n", "org/" + "n" * 97, "org/é"),
)


@pytest.mark.parametrize("model", NO_HUB_IDS)
def test_what_is_no_hub_id_is_refused_without_asking_the_hub(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: asked.append(args))
    assert not is_hub_id(model)
    with pytest.raises(CheckpointError, match="is not a hub id; expected org/name"):
        download(model, lambda path: None)
    assert asked == []


def test_the_config_comes_first_and_the_weights_only_when_it_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fake(repo: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(tmp_path)

    def refuse(path: Path) -> None:
        raise UnsupportedModelError("no")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    with pytest.raises(UnsupportedModelError):
        download("org/name@v1", refuse)
    assert asked == [("org/name", "v1", ["config.json"])]
    assert download("org/name", lambda path: None) == tmp_path
    assert "*.safetensors" in asked[-1][2]
    assert not any("bin" in pattern for pattern in asked[-1][2])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "no such repository, or it is private"),
        ("GatedRepoError", "its owner gives access on request"),
        ("RevisionNotFoundError", r"no such revision \(v1\)"),
        ("LocalEntryNotFoundError", "no connection, and it is not in the cache"),
        ("OfflineModeIsEnabled", "offline mode is on"),
    ],
)
def test_the_errors_of_the_hub_become_one_clear_line(error: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        kind = getattr(huggingface_hub.errors, error)
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=f"org/name cannot be had from the hub: {message}"):
        download("org/name@v1", lambda path: None)


def test_an_error_nobody_foresaw_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"OSError: .*No space left on device"):
        download("org/name", lambda path: None)
