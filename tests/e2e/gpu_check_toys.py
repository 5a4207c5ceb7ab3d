"""Sections for the test of tools/gpu_check: quick ones, one that raises, one that dies, one that never ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any


def whose(results: dict[str, Any]) -> dict[str, Any]:
    """Which process this is, and what came before."""
    return {"pid": os.getpid(), "before": list(results)}


def raises(results: dict[str, Any]) -> dict[str, Any]:
    """An error of its own."""
    raise ValueError("told to")


def dies(results: dict[str, Any]) -> dict[str, Any]:
    """Without a word."""
    os._exit(7)


def hangs(results: dict[str, Any]) -> dict[str, Any]:
    """For ever."""
    threading.Event().wait()
    return {}


def leaves_one_behind(results: dict[str, Any]) -> dict[str, Any]:
    """A process that hangs."""
    return {"left": subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"]).pid}
