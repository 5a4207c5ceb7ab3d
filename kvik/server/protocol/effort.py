"""How much work decoding a body will be, told from its bytes before anything is allocated.

The decoder lets no other thread run until it is done, so a body that keeps it busy for long holds up everybody. Text is
cheap, megabytes of it; what costs time and memory are values, of which a few bytes can be many. They are counted by the
marks that stand around them outside of strings, a piece of the body at a time, and other threads run between pieces.
Knows nothing of what a body means or whether it is JSON.
"""

from __future__ import annotations

PIECE = 2**18
MOST = 2**20
"""Units of work that are taken: about 5 to 30 ns each, and so 5 to 30 ms in all. The largest bodies within it hold
800,000 small numbers, half a million token ids, 200,000 strings, 110,000 lists or 60,000 keys."""
UNITS = {b",": 1, b".": 1, b"e": 1, b"E": 1, b":": 12, b"[": 8, b"{": 8}
"""What a mark stands for: a value, the harder kinds of number, a key, a list or an object."""
QUOTE_UNITS = 2
BYTES_PER_UNIT = 8
"""Of what is no string: long numbers, spaces."""
ESCAPES_PER_UNIT = 4


def is_too_much(body: bytes) -> bool:
    """Whether decoding a body would be more work than is taken."""
    units, inside, at = 0, False, 0
    while at < len(body) and units <= MOST:
        end = _end_of_piece(body, at)
        cost, inside = _effort(body[at:end], inside)
        units, at = units + cost, end
    return units > MOST


def _end_of_piece(body: bytes, at: int) -> int:
    """Where a piece that begins here may end: not between a backslash and what it escapes."""
    piece = body[at : at + PIECE]
    backslashes = len(piece) - len(piece.rstrip(b"\\"))
    return at + len(piece) + backslashes % 2


def _effort(piece: bytes, inside: bool) -> tuple[int, bool]:
    """Units of a piece that begins inside a string, or not; and whether the next one does."""
    escapes = piece.count(b"\\")
    if escapes:
        piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = piece.split(b'"')
    outside = b"".join(parts[inside::2])
    units = sum(weight * outside.count(mark) for mark, weight in UNITS.items())
    units += QUOTE_UNITS * (len(parts) - 1) + len(outside) // BYTES_PER_UNIT + escapes // ESCAPES_PER_UNIT
    return units, inside ^ (len(parts) % 2 == 0)
