"""Result files: the fields users rely on, and that only sound results are written or accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvik import __version__
from kvik.bench.checks import EvidenceError
from kvik.bench.commit import find_commit
from kvik.bench.evidence import REQUIRED, compose, read, verify, write

FIELDS = (
    "kind date kvik_version commit machine model options workload seed warmups samples summary limits how_obtained "
    "checks"
)


def sound() -> dict[str, Any]:
    return compose(
        kind="roofline",
        metric="gigabytes_per_s",
        unit="GB/s",
        machine={"cpu": "a processor"},
        samples=[{"gigabytes_per_s": value} for value in (30.0, 31.0, 29.0)],
        limits={"capacity_metric": None, "cost": None, "does_not_bind": "this is the limit"},
        how_obtained="by hand",
        warmups=1,
        seed=3,
    )


def test_a_result_has_exactly_the_promised_fields() -> None:
    assert " ".join(REQUIRED) == FIELDS
    assert list(sound()) == list(REQUIRED)


def test_a_result_says_what_made_it() -> None:
    result = sound()
    assert result["kvik_version"] == __version__
    assert (result["seed"], result["warmups"], result["how_obtained"]) == (3, 1, "by hand")
    assert result["samples"] == [{"gigabytes_per_s": 30.0}, {"gigabytes_per_s": 31.0}, {"gigabytes_per_s": 29.0}]


def test_what_is_written_is_read_and_verified(tmp_path: Path) -> None:
    write(sound(), tmp_path / "r.json")
    assert read(tmp_path / "r.json")["kind"] == "roofline"
    assert all(check["passed"] for check in verify(tmp_path / "r.json"))


def test_an_unsound_result_is_not_written(tmp_path: Path) -> None:
    result = sound()
    result["summary"]["median"] = 1000.0
    with pytest.raises(EvidenceError, match="summary follows from the samples"):
        write(result, tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_verify_finds_an_edited_file(tmp_path: Path) -> None:
    result = sound() | {"samples": [{"gigabytes_per_s": 99.0}]}
    (tmp_path / "r.json").write_text(json.dumps(result))
    assert not all(check["passed"] for check in verify(tmp_path / "r.json"))


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not JSON"), ("[]", "not a result"), ('{"kind": "decode"}', "lacks date, kvik_version")]
)
def test_what_is_no_result_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(EvidenceError, match=said):
        verify(tmp_path / "r.json")


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="cannot be read"):
        verify(tmp_path / "nothing.json")
    with pytest.raises(EvidenceError, match="cannot be written"):
        write(sound(), tmp_path)


def checkout(folder: Path, head: str) -> Path:
    (folder / ".git" / "refs" / "heads").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text(head)
    (folder / ".git" / "packed-refs").write_text("# pack-refs\nbbb refs/heads/packed\n")
    (folder / ".git" / "refs" / "heads" / "main").write_text("aaa\n")
    return folder / "kvik"


@pytest.mark.parametrize(
    ("head", "commit"),
    [
        ("ref: refs/heads/main\n", "aaa"),
        ("ref: refs/heads/packed\n", "bbb"),
        ("ref: refs/heads/unborn\n", None),
        ("ccc\n", "ccc"),
    ],
)
def test_commit_is_read_from_the_checkout(tmp_path: Path, head: str, commit: str | None) -> None:
    assert find_commit(checkout(tmp_path, head)) == commit


def test_commit_of_a_linked_worktree(tmp_path: Path) -> None:
    checkout(tmp_path / "main", "ref: refs/heads/main\n")
    own = tmp_path / "main/.git/worktrees/second"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/main\n")
    (own / "commondir").write_text("../..\n")
    (tmp_path / "second").mkdir()
    (tmp_path / "second/.git").write_text(f"gitdir: {own}\n")
    assert find_commit(tmp_path / "second/kvik") == "aaa"


def test_an_installed_package_has_no_commit(tmp_path: Path) -> None:
    assert find_commit(tmp_path / "site-packages/kvik") is None
