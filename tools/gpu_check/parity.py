"""The parity tests of the CUDA runner, with Triton for real: run by pytest in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("test_parity_cuda_kernels.py", "test_parity_cuda_runner.py", "../unit/runners/test_cuda_sampling.py")
LIMIT_S = 180


def run_tests(results: dict[str, Any]) -> dict[str, Any]:
    """The end of pytest's report, and whether all passed."""
    folder = ROOT / "tests/parity"
    # The project's own settings name plugins that may be absent here.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--maxfail=8", "-m", "not slow", "-c", os.devnull]
    command += [f"--rootdir={ROOT}", f"--confcutdir={folder}", "-p", "no:cacheprovider", *TESTS]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    print("\n".join(lines[-60:]))
    report: dict[str, Any] = {"passed": done.returncode == 0, "last_lines": lines[-40:]}
    return report if report["passed"] else report | {"error": lines[-1] if lines else f"status {done.returncode}"}
