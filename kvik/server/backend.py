"""Backend: what the server needs of an engine, which is what `AsyncLLM` is.

Written down so that the server can be tested with anything that behaves so. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

from kvik.engine.remote.frames import ModelInfo, Update
from kvik.request import SamplingParams
from kvik.text.tokenizer import Tokenizer


class Health(Protocol):
    """How the engine is."""

    @property
    def state(self) -> str:
        """loading, ready, restarting or failed."""

    @property
    def progress_age_s(self) -> float:
        """Seconds since its last sign of life."""

    @property
    def restarts(self) -> int:
        """How often it was started again."""

    @property
    def reason(self) -> str | None:
        """Why it is not ready."""


class Stream(Protocol):
    """One request, update after update; see kvik/engine/remote/stream.py."""

    def __aiter__(self) -> AsyncIterator[Update]: ...

    def bound(self, num_bytes: int, overflow: Callable[[], None]) -> None:
        """Call `overflow` at every update that comes while more than so much is kept for its reader."""

    async def wait(self, timeout_s: float) -> bool:
        """Whether something of it can be had without waiting, at the latest after so long."""

    async def whole(self) -> list[Update]:
        """One update for each choice, at the end."""

    def abort(self) -> None:
        """End it with what it has."""

    async def __aenter__(self) -> Stream: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Backend(Protocol):
    """One model, loaded or being loaded."""

    @property
    def info(self) -> ModelInfo | None:
        """None until it is loaded."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None for a model without text, and until it is loaded."""

    @property
    def health(self) -> Health: ...

    def submit(
        self,
        token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        salt: bytes = b"",
    ) -> Stream:
        """Send a request. Raises KvikError."""

    async def stats(self) -> dict[str, Any]:
        """The engine's own snapshot. Raises EngineError."""

    async def close(self) -> None:
        """End it. Idempotent."""
