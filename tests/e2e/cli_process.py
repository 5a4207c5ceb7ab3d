"""The command line as its users meet it: a process of its own, started outside the checkout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import kvik

COMMAND = [sys.executable, "-m", "kvik"]
SMALL = ["--threads", "1", "--kv-cache-memory", "16MiB"]
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
STORIES = DATA / "models" / "stories260K"


def environment() -> dict[str, str]:
    """This environment, with the package that the tests import and one thread for numpy."""
    own = {"PYTHONPATH": str(Path(kvik.__file__).parents[1]), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return os.environ | own


def run_kvik(*args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    return subprocess.run(
        [*COMMAND, *args],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        cwd="/",
        env=environment(),
        timeout=120,
        check=False,
    )


def start_kvik(*args: str) -> subprocess.Popen[str]:
    """A command that is still running, in a process group of its own, as a shell starts it: Ctrl-C reaches it even
    where the tests themselves run in the background, which passes on that it is to be ignored.
    """
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*COMMAND, *args],
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        cwd="/",
        env=environment(),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object on the last line of stdout."""
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value
