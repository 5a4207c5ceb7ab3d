"""Link: one engine from its start to its end, as a supervisor sees it; a process, a thread, or a test's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvik.engine.remote.frames import Command, Event


class Link(Protocol):
    """Events come to one callable and the reason why there will be no more to another, both on the event loop."""

    @property
    def can_be_killed(self) -> bool:
        """Whether `end` ends it whatever it is doing."""

    @property
    def pid(self) -> int | None:
        """Of its own process, while there is one."""

    @property
    def backlog(self) -> int:
        """Bytes of commands that it has not taken yet."""

    def cpu_seconds(self) -> float:
        """Processor time that it has used by now, if it can be killed."""

    async def start(self) -> None:
        """Have it load its model. Raises EngineError."""

    def send(self, command: Command) -> None:
        """Never waits. Does nothing once the link is broken."""

    def dump(self) -> None:
        """Have it write its stacks to the log, if that can be."""

    async def end(self, patience_s: float = 0.0) -> str:
        """End it, forcibly after so long; returns when it has gone, with how it ended. Idempotent."""


Connect = Callable[[Callable[[Event], None], Callable[[str], None]], Link]
"""A link that is not started yet, from what takes its events and what is told why there are no more."""
