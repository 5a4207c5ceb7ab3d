"""Pseudo-random 64-bit numbers, one at a time and in arrays: what the fake model is made of.

Both forms compute SplitMix64's output for a state (Steele, Lea, Flood 2014); all sums and products are modulo 2**64.
"""

from __future__ import annotations

import numpy as np

from kvik.request import MASK64
from kvik.step import Int32, Int64, UInt64

GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_GAMMA, _FIRST, _SECOND = np.uint64(GAMMA), np.uint64(FIRST), np.uint64(SECOND)
_30, _27, _31, _32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


def mix(state: int) -> int:
    """A number that every bit of `state` has a part in."""
    z = (state + GAMMA) & MASK64
    z = ((z ^ (z >> 30)) * FIRST) & MASK64
    z = ((z ^ (z >> 27)) * SECOND) & MASK64
    return z ^ (z >> 31)


def key_of(token: int, position: int) -> int:
    """What a token at a position adds to the states from there on."""
    return mix((token + 1) << 32 | position)


def weight_of(position: int) -> int:
    """The odd factor of a position's state in the sum over a whole row."""
    return mix(position) | 1


def mix_all(states: UInt64) -> UInt64:
    """`mix` of each, [N]."""
    z: UInt64 = states + _GAMMA
    z ^= z >> _30
    z *= _FIRST
    z ^= z >> _27
    z *= _SECOND
    z ^= z >> _31
    return z


def keys_of(tokens: Int32, positions: Int32) -> UInt64:
    """`key_of` each token at its position, [N]; neither is negative."""
    pairs: UInt64 = tokens.astype(np.uint64) + np.uint64(1)
    pairs <<= _32
    pairs |= positions.astype(np.uint64)
    return mix_all(pairs)


def weights_of(positions: Int64) -> UInt64:
    """`weight_of` each position, [N]."""
    factors: UInt64 = mix_all(positions.astype(np.uint64)) | np.uint64(1)
    return factors
