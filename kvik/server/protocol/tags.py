"""What the parsers of generated text share: pieces of text that may be the beginning of a tag, and where JSON ends.

Text arrives in arbitrary pieces, so both answer for a prefix of what is to come.
"""

from __future__ import annotations

import re

_JSON = frozenset('0123456789+-.eEtrufalsn:, \t\r\n{}[]"')
"""Characters that may stand outside the strings of JSON."""
_IN_STRING = re.compile(r'["\\\x00-\x1f]')
"""Characters that mean something inside them."""


def undecided(text: str, tag: str) -> int:
    """How many characters at the end of `text` may belong to a `tag`: its beginning, and newlines before that."""
    last = len(tag) - 1
    partial = 0
    if tag[0] in text[-last:]:
        partial = next((n for n in range(min(last, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
    return len(text) - len(text[: len(text) - partial].rstrip("\n"))


class ObjectScan:
    """Finds the end of one JSON object in text that arrives in pieces.

    It counts brackets outside strings and does not check the rest of JSON's grammar; `broken` says that no object can
    come of it any more: something else than an object, a bare character, or a string with a line break in it.
    """

    __slots__ = ("_depth", "_escaped", "_in_string", "broken", "ended")

    def __init__(self) -> None:
        self.broken = False
        self.ended = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """How many characters of the next piece belong to the object, with space before it. Fewer than all of them
        once the object has ended or is broken.
        """
        place = 0
        while place < len(text):
            if self._in_string and not self._escaped:
                special = _IN_STRING.search(text, place)
                if special is None:
                    return len(text)
                place = special.start()
            self._step(text[place])
            if self.broken:
                return place
            place += 1
            if self.ended:
                return place
        return len(text)

    def _step(self, char: str) -> None:
        if self._in_string:
            self._step_in_string(char)
        else:
            self._step_outside(char)

    def _step_in_string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
        else:
            self.broken = char < " "

    def _step_outside(self, char: str) -> None:
        if char in "{[":
            self.broken = self._depth == 0 and char == "["
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.broken = self._depth < 0
            self.ended = self._depth == 0
        elif self._depth == 0:
            self.broken = not char.isspace()
        elif char == '"':
            self._in_string = True
        else:
            self.broken = char not in _JSON
