"""GuardedTransport: a connection's transport that never waits for ever.

It stands between the HTTP protocol and asyncio's transport. A client that stops reading is cut after a while; one
that is still sending when its answer is complete gets a moment to stop, because closing at once would make its system
throw the answer away. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

LEAST_PROGRESS = 16 * 1024
"""Bytes that a client with a full buffer must take within a write timeout."""
LINGER_S = 2.0
READ_BYTES = 65536
"""Most bytes taken from a socket at a time."""


class GuardedTransport(asyncio.Transport):
    """`raw` with limits. `sending` says whether the peer may still be sending; `cut` is called before a client that
    does not read is cut. Times are in seconds.
    """

    def __init__(
        self,
        raw: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        write_timeout: float,
        sending: Callable[[], bool],
        cut: Callable[[], None],
    ) -> None:
        super().__init__()
        self._raw, self._loop, self._write_timeout = raw, loop, write_timeout
        self._sending, self._cut = sending, cut
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        if hasattr(raw, "max_size"):
            raw.max_size = READ_BYTES

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, or drop what comes after the end."""
        if not self._closing:
            self._raw.write(data)

    def close(self) -> None:
        """Send what is buffered and end; a peer that is still sending is heard out for a moment."""
        if self._closing:
            return
        self._closing = True
        self.flowing()
        if self._sending() and not self._raw.is_closing():
            self._timer = self._loop.call_later(min(LINGER_S, self._write_timeout), self._raw.abort)
            with contextlib.suppress(OSError, RuntimeError):
                self._raw.resume_reading()
                self._raw.write_eof()
                return
        self._raw.close()
        if self._raw.get_write_buffer_size():
            self.stalled()

    def close_now(self) -> None:
        """End without hearing the peer out."""
        self._closing = True
        self._raw.close()

    def stalled(self) -> None:
        """The peer does not read: watch whether it takes anything."""
        self.flowing()
        self._unsent = self._raw.get_write_buffer_size()
        self._timer = self._loop.call_later(self._write_timeout, self._check_progress)

    def flowing(self) -> None:
        """The peer reads again, or has gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_progress(self) -> None:
        left = self._raw.get_write_buffer_size()
        if self._unsent - left < LEAST_PROGRESS:
            self._cut()
            self._raw.abort()
        else:
            self.stalled()

    def abort(self) -> None:
        """End at once and drop what is buffered."""
        self._closing = True
        self._raw.abort()

    def is_closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._closing or self._raw.is_closing()

    def pause_reading(self) -> None:
        """Take nothing from the socket for now."""
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes from the socket again."""
        self._raw.resume_reading()

    def get_write_buffer_size(self) -> int:
        """Bytes that the system has not taken yet."""
        return self._raw.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What asyncio knows of the socket."""
        return self._raw.get_extra_info(name, default)
