"""StopSearch: finds stop strings in text that arrives in pieces, and holds back what may become one.

The rule, the same however the text is cut into pieces: of all occurrences in the text the one that starts earliest
wins; of those that start at one place the shortest, which is the one that completes first. So with the stop strings
"abcd" and "bc" the text "abc" is still open: "bc" is there, but "abcd" may yet begin before it.

An Aho-Corasick automaton (Aho & Corasick 1975), so the cost is linear in the text whatever the stop strings are: its
state is the longest end of the text that begins a stop string, which is exactly what must be held back. Knows
nothing of tokens.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence


class StopSearch:
    """One search through one text. `matched` is the stop string once it is certain."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.matched: str | None = None
        self._next: list[dict[str, int]] = [{}]
        self._found: list[str] = [""]
        """Per state: the longest stop string that ends here, so the one that starts earliest."""
        for stop in stops:
            self._insert(stop)
        self._depth = [0] * len(self._next)
        self._fail = [0] * len(self._next)
        self._link()
        self._first = re.compile("[" + "".join(re.escape(char) for char in sorted(self._next[0])) + "]")
        self._state = 0
        self._held = ""
        """The text not yet given out; it ends with the `_depth[_state]` characters that the state stands for."""
        self._best: tuple[int, str] | None = None
        """Where in `_held` the best occurrence so far starts, and which it is."""

    def _insert(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._found.append("")
            state = self._next[state][char]
        self._found[state] = stop

    def _link(self) -> None:
        """Depths, and from each state the one to fall back to: breadth first, since a fallback is shallower."""
        queue = deque([0])
        while queue:
            state = queue.popleft()
            for char, child in self._next[state].items():
                self._depth[child] = self._depth[state] + 1
                self._fail[child] = self._step(self._fail[state], char) if state else 0
                self._found[child] = self._found[child] or self._found[self._fail[child]]
                queue.append(child)

    def _step(self, state: int, char: str) -> int:
        while state and char not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(char, 0)

    def push(self, text: str) -> str:
        """Take in a piece; return what is certain to stand before any stop string. After a match: nothing."""
        if self.matched is not None:
            return ""
        if not self._state and self._best is None and not self._first.search(text):
            return text
        start = len(self._held)
        self._held += text
        for end in range(start, len(self._held)):
            self._state = self._step(self._state, self._held[end])
            self._note(end + 1)
            if self._best is not None and end + 1 - self._depth[self._state] >= self._best[0]:
                return self.finish()
        return self._release(len(self._held) - self._depth[self._state])

    def _note(self, end: int) -> None:
        """Remember the stop string that ends here, if it starts before the best so far."""
        found = self._found[self._state]
        if found and (self._best is None or end - len(found) < self._best[0]):
            self._best = (end - len(found), found)

    def _release(self, count: int) -> str:
        """Give out the first `count` held characters: no occurrence can start in them."""
        safe, self._held = self._held[:count], self._held[count:]
        if self._best is not None:
            self._best = (self._best[0] - count, self._best[1])
        return safe

    def finish(self) -> str:
        """The text has ended: what remains of it, before the best occurrence if there is one."""
        rest = self._held
        if self._best is not None:
            rest, self.matched = rest[: self._best[0]], self._best[1]
        self._held, self._state, self._best = "", 0, None
        return rest
