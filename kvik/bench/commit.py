"""The commit a result was measured at, read from the files of the checkout the package runs from.

No program is started for it. An installed package lies outside any checkout and has no commit to name: None.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def find_commit(start: Path = PACKAGE) -> str | None:
    """The commit id that the checkout around `start` is at; None if it is not directly inside one."""
    git = start.parent / ".git"
    try:
        if git.is_file():
            git = (start.parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).resolve()
        return _resolve(git, (git / "HEAD").read_text(encoding="utf-8").strip())
    except OSError:
        return None


def _resolve(git: Path, head: str) -> str | None:
    if not head.startswith("ref:"):
        return head
    name = head.removeprefix("ref:").strip()
    common = git / "commondir"
    root = (git / common.read_text(encoding="utf-8").strip()).resolve() if common.exists() else git
    for place in (git, root):
        if (place / name).exists():
            return (place / name).read_text(encoding="utf-8").strip()
    packed = (root / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.split()[0] for line in packed if line.endswith(" " + name)), None)
