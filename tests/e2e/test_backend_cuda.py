"""`--backend cuda` where it cannot serve: a line that says why and what to do, from every door."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from cli_process import SMALL, environment, run_kvik

from kvik import LLM
from kvik.errors import BackendError
from kvik.runners.cuda import refusal

pytestmark = pytest.mark.skipif(refusal() is None, reason="needs a machine without a GPU")
DUMMY = ("--model", "dummy:tiny-llama", "--backend", "cuda")
NO_TORCH = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in ("torch", "triton") else find(name, *more)
sys.argv = ["kvik", "generate", "--model", "dummy:tiny-llama", "--backend", "cuda", "--prompt-token-ids", "1"]
runpy.run_module("kvik", run_name="__main__")
"""


def check_line(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"kvik: error: backend is 'cuda', which cannot serve here: {said}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        (
            "generate",
            "--prompt-token-ids",
            "1,2",
            "--tensor-parallel-size",
            "2",
            "--kv-dtype",
            "fp8",
            "--deterministic",
        ),
        ("info",),
    ],
    ids=["generate", "info"],
)
def test_the_command_line_says_why_in_a_line(command: tuple[str, ...]) -> None:
    name, *more = command
    check_line(run_kvik(name, *DUMMY, *more, *SMALL), refusal() or "")


def test_the_server_ends_with_that_line() -> None:
    done = run_kvik("serve", *DUMMY, "--port", "0", *SMALL)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"kvik: error: backend is 'cuda', which cannot serve here: {refusal()}"
    )


def test_without_torch_it_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH], capture_output=True, text=True, cwd=os.sep, env=environment(), check=False
    )
    check_line(done, "torch and triton not installed: install kvik[cuda]")


def test_llm_raises_it() -> None:
    with pytest.raises(BackendError, match=r"^backend is 'cuda', which cannot serve here: [^\n]+$"):
        LLM("dummy:tiny-llama", backend="cuda")


def test_fp8_without_cuda_is_one_line_and_status_2() -> None:
    done = run_kvik("generate", "--model", "dummy:tiny-llama", "--kv-dtype", "fp8", "--prompt-token-ids", "1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "kv_dtype is 'fp8'" in done.stderr
