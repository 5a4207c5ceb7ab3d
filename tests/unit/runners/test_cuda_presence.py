"""Where the CUDA runner cannot serve it says why in one line, and nobody who does not ask for it pays for torch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvik.runners.cuda import presence

ROOT = Path(__file__).resolve().parents[3]
PARITY = ROOT / "tests/parity"


@pytest.mark.parametrize("absent", [("torch",), ("triton",), ("torch", "triton")])
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, absent: tuple[str, ...]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else found("json"))
    assert presence.refusal() == f"{' and '.join(absent)} not installed: install kvik[cuda]"


def test_choosing_a_runner_does_not_import_torch() -> None:
    program = (
        "import sys, kvik.runners.choose, kvik.runners.cuda; print('torch' in sys.modules, 'triton' in sys.modules)"
    )
    assert python("-c", program, cwd=ROOT) == "False False"


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_every_kernel_compiles_for_gpus_that_are_not_here(capability: str) -> None:
    pytest.importorskip("triton")
    assert int(python("cuda_compiles.py", capability, cwd=PARITY)) >= 30


def python(*arguments: str, cwd: Path) -> str:
    """What a fresh interpreter prints."""
    environment: dict[str, Any] = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
