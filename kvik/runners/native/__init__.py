"""The native runner: C++ kernels called through ctypes. See csrc/ for what they do."""

from kvik.runners.native.machine import available, best_isa, draw, roofline
from kvik.runners.native.runner import NativeRunner

__all__ = ["NativeRunner", "available", "best_isa", "draw", "roofline"]
