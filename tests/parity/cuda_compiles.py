"""Compiles every Triton kernel for a GPU that is not there: `python cuda_compiles.py CAPABILITY`, 90 for Hopper.

Launches are made as in a real step, with tensors on the CPU, by a driver that only names a target; each kernel is
compiled to machine code and not run. Prints the number of kernels that were compiled. Not a test itself: Triton must be
imported without its interpreter, so this needs a process of its own.
"""

# ruff: noqa: E402
from __future__ import annotations

import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")

import torch
import triton
from cuda_steps import every_launch
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class Target:
    """The least of a driver that compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main() -> None:
    triton.runtime.driver.set_active(Target(int(sys.argv[1])))
    compiled = set()
    run = JITFunction.run

    def warmed(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.add(kernel.hash)
        return kernel

    JITFunction.run = warmed  # type: ignore[method-assign]
    every_launch(torch.bfloat16)
    print(len(compiled))


if __name__ == "__main__":
    main()
