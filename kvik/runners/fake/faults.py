"""Faults on command. A prompt that spells one of these in its text, or in the ids 0 .. 255 of these bytes, asks for it:

    [[raise]]   RuntimeError             [[oom]]    MemoryError
    [[nan]]     its draws fail           [[slow]]   the step takes SLOW_S longer
    [[hang]]    the step never ends      [[exit]]   the process ends at once, with status EXIT_STATUS

It strikes whenever a row that holds the whole spelling is computed; [[raise@7]] waits until the 7th token of the answer
is drawn. The last one in a row counts. A prompt may come in pieces, or from the prefix cache, so what was spelled up to
a token is kept in the token's slot, as a code. This file knows nothing of slots.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from kvik.step import Int32

KINDS = ("raise", "hang", "nan", "exit", "oom", "slow")
SLOW_S = 0.1
EXIT_STATUS = 17
_SPELLING = re.compile(rf"\[\[({'|'.join(KINDS)})(?:@([1-9]\d{{0,3}}))?\]\]".encode())
LONGEST = len("[[raise@9999]]")
CLOSING = ord("]")


@dataclass(frozen=True)
class Fault:
    """What a prompt asks for."""

    kind: str
    at: int = 0
    """The token of the answer, counted from 1, at whose draw it strikes; 0: whenever the row is computed."""

    @property
    def code(self) -> int:
        """A number above 0."""
        return self.at << 8 | (KINDS.index(self.kind) + 1)

    @classmethod
    def of_code(cls, code: int) -> Fault:
        """The fault of a code."""
        return cls(KINDS[(code & 255) - 1], code >> 8)

    @property
    def spelling(self) -> str:
        """As a prompt spells it."""
        return f"[[{self.kind}@{self.at}]]" if self.at else f"[[{self.kind}]]"

    def strikes(self, *, draws: bool, answered: int) -> bool:
        """Whether it does in a step that computes its row, whose answer has so many tokens and may draw one more."""
        return not self.at or (draws and answered + 1 == self.at)


def spelled_in(token_ids: Int32) -> list[tuple[int, int]]:
    """(index of its last token, code) of every fault spelled in these tokens, in order."""
    text = np.where((token_ids >= 0) & (token_ids < 256), token_ids, 0).astype(np.uint8).tobytes()
    found = _SPELLING.finditer(text)
    return [(match.end() - 1, Fault(match[1].decode(), int(match[2] or 0)).code) for match in found]
