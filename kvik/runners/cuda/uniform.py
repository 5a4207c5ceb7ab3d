"""The random numbers of draws: Philox4x32-10 of (seed, position), for many draws at once in numpy.

The same numbers as `uniform` of the reference sampler, which says where they come from. Counters are few integers that
the host holds anyway, so they are not computed on the device.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvik.step import Int64, UInt64

_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_STEPS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def uniforms(seeds: UInt64, positions: Int64) -> NDArray[np.float64]:
    """[S] numbers in [0, 1) with 24 bits, of seeds and positions [S]."""
    counter = positions.astype(np.uint64)
    c0, c1 = counter & _LOW, counter >> _WORD
    c2 = c3 = np.zeros_like(c0)
    k0, k1 = seeds & _LOW, seeds >> _WORD
    for _ in range(10):
        a, b = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (b >> _WORD) ^ c1 ^ k0, b & _LOW, (a >> _WORD) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + _STEPS[0]) & _LOW, (k1 + _STEPS[1]) & _LOW
    numbers: NDArray[np.float64] = (c0 >> np.uint64(8)).astype(np.float64) / 2**24
    return numbers
