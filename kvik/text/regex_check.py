"""Bounds on regular expressions, read off their text before anything is compiled.

Expressions are matched in linear time here, so none can hang; but a long one, or one that counts far, makes large
tables. The reader knows just enough of the syntax of Rust's `regex` to see sizes: escapes, classes, groups and
counts. Whether an expression means anything is for the library that compiles it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kvik.errors import InvalidRequestError

MAX_REGEX_CHARS = 2000
MAX_REGEX_DEPTH = 32
MAX_REGEX_COUNT = 10_000
"""Largest count in braces, and the most characters that an expression may count in all."""
MAX_REGEX_QUANTIFIERS = 500

_ITEM = re.compile(
    r"""\\[pPxuU]\{[^}]*\} | \\.                  (?# an escape)
      | \[ | \| | \)
      | \(\?[a-zA-Z-]+\)                           (?# flags from here on)
      | \((?:\?(?:P?<\w+>|[a-zA-Z-]*:))?
      | \{(?P<low>\d*)(?P<comma>,)?(?P<high>\d*)\} | [*+?]
      | .""",
    re.VERBOSE | re.DOTALL,
)


@dataclass
class _Group:
    """An open group: what it can count up to so far, and its last item, which a quantifier may follow."""

    size: int = 0
    items: int = 0
    last: int = 0
    last_unbounded: bool = False
    """Whether the last item is repeated without bound, or is a group of only such an item."""

    def add(self, size: int, unbounded: bool = False) -> None:
        self.size += size
        self.items += 1
        self.last, self.last_unbounded = size, unbounded


@dataclass
class _Reader:
    pattern: str
    param: str
    place: int = 0
    quantifiers: int = 0
    open: list[_Group] = field(default_factory=lambda: [_Group()])

    def refuse(self, what: str, expected: str) -> InvalidRequestError:
        return InvalidRequestError(f"the regular expression {what}; expected {expected}", param=self.param)

    def read(self) -> None:
        while (item := _ITEM.match(self.pattern, self.place)) is not None:
            self.place = item.end()
            self._take(item)

    def _take(self, item: re.Match[str]) -> None:
        text = item[0]
        if text == "[":
            self._skip_class()
        elif text == "|":
            self.open[-1].items += 1
        elif text[0] == "(":
            if text[-1] != ")":
                self._begin_group()
        elif text == ")":
            self._end_group()
        elif text in ("*", "+", "?") or item["low"] or item["high"]:
            self._repeat(item)
        else:
            self.open[-1].add(1)

    def _skip_class(self) -> None:
        """To the end of a class; classes nest, and a bracket may come first in one."""
        first = re.compile(r"\^?\]?").match(self.pattern, self.place)
        assert first is not None
        depth, self.place = 1, first.end()
        while depth and self.place < len(self.pattern):
            char = self.pattern[self.place]
            self.place += 2 if char == "\\" else 1
            depth += (char == "[") - (char == "]")
        self.open[-1].add(1)

    def _begin_group(self) -> None:
        if len(self.open) > MAX_REGEX_DEPTH:
            raise self.refuse(f"nests more than {MAX_REGEX_DEPTH} groups", "fewer")
        self.open.append(_Group())

    def _end_group(self) -> None:
        if len(self.open) > 1:
            group = self.open.pop()
            self.open[-1].add(max(group.size, 1), group.items == 1 and group.last_unbounded)

    def _repeat(self, item: re.Match[str]) -> None:
        group = self.open[-1]
        self.quantifiers += 1
        if self.quantifiers > MAX_REGEX_QUANTIFIERS:
            raise self.refuse(f"has more than {MAX_REGEX_QUANTIFIERS} repeats", "fewer")
        count = self._count(item)
        unbounded = item[0] in ("*", "+") or bool(item["comma"] and not item["high"])
        if unbounded and group.last_unbounded and self.pattern[item.start() - 1] == ")":
            raise self.refuse("repeats without bound what is itself such a repeat, as in (a+)+", "one of the two")
        group.size += group.last * (count - 1)
        if group.size > MAX_REGEX_COUNT:
            raise self.refuse(f"counts to {group.size} characters", f"at most {MAX_REGEX_COUNT}")
        group.last_unbounded = unbounded

    def _count(self, item: re.Match[str]) -> int:
        """How often an item may come, where that is bounded; otherwise how often it must."""
        digits = (item["high"] or item["low"] or "1") if item[0][0] == "{" else "1"
        if len(digits) > len(str(MAX_REGEX_COUNT)) or int(digits) > MAX_REGEX_COUNT:
            raise self.refuse(f"counts to {digits[:20]}", f"at most {MAX_REGEX_COUNT}")
        return max(int(digits), 1)


def check_regex(pattern: str, param: str = "regex") -> None:
    """Hold an expression against the bounds. Raises InvalidRequestError."""
    if len(pattern) > MAX_REGEX_CHARS:
        raise InvalidRequestError(
            f"the regular expression has {len(pattern)} characters; expected at most {MAX_REGEX_CHARS}", param=param
        )
    _Reader(pattern, param).read()
