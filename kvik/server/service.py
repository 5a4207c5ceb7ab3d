"""Service: what the routes of one server share, and whether it can answer.

The engine, the queue in front of it, the names of the model, the log and the meter. It is what knows that a model is
still being loaded, that an engine is starting again, or that the server is about to end. Knows nothing of HTTP beyond
the errors it raises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from kvik import __version__
from kvik.engine.remote.frames import ModelInfo
from kvik.errors import KvikError
from kvik.server.admission import Admission, Window
from kvik.server.backend import Backend
from kvik.server.body import BodyBudget
from kvik.server.exchange import Exchange
from kvik.server.logs import Log, own_words
from kvik.server.meter import DRAINING, NOT_READY, Meter
from kvik.server.options import ServerOptions
from kvik.server.protocol.errors import SERVER, ApiError
from kvik.server.protocol.models import ServedModel
from kvik.server.protocol.terms import Terms
from kvik.server.texts import Texts
from kvik.server.traces import Traces

CHARS_PER_TOKEN = 32
"""A text with more characters than this for every token of the context is refused without being tokenized."""
LEAST_TEXT_CHARS = 65536
MAX_TEXT_CHARS = 2**23
STATS_TIMEOUT_S = 2.0


class Loaded:
    """What is known once a model is loaded. It stays when the engine is started again."""

    def __init__(self, backend: Backend, info: ModelInfo, options: ServerOptions, clock: Callable[[], float]) -> None:
        self.info = info
        self.texts = Texts(backend.tokenizer)
        self.admission = Admission(options.flow, Window(info.max_num_seqs, info.max_num_batched_tokens), clock)
        names = options.listen.served_model_name or default_names(info.name)
        created = int(time.time())
        self.models = [ServedModel(name, created, info.max_model_len) for name in names]
        chars = max(LEAST_TEXT_CHARS, CHARS_PER_TOKEN * info.max_model_len)
        self.terms = Terms(
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            max_text_chars=min(chars, MAX_TEXT_CHARS),
            sampling_defaults=backend.tokenizer.sampling_defaults if backend.tokenizer else {},
        )
        self.fingerprint = f"kvik-{__version__}-{info.backend}"


def default_names(name: str) -> tuple[str, ...]:
    """A model's names if none were given: as it was asked for, and the last part of a path."""
    return (name, PurePath(name).name) if name.startswith(("/", ".", "~")) else (name,)


class Service:
    """One server. `clock` is monotonic, in seconds, and the event loop's own."""

    def __init__(
        self,
        backend: Backend,
        options: ServerOptions,
        log: Log,
        meter: Meter | None = None,
        traces: Traces | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.backend, self.options, self.log = backend, options, log
        self.clock, self.wall_clock = clock, wall_clock
        self.meter = meter or Meter()
        self.traces = traces
        """Who is sent a span for every request; None: nobody."""
        self.budget = BodyBudget(options.connection.max_body_memory)
        self.draining = False
        """No new request is taken."""
        self.open: set[Exchange] = set()
        """Requests without a complete reply."""
        self.connections: Callable[[], int] = lambda: 0
        """How many there are."""
        self._loaded: Loaded | None = None
        self._numbers = 0

    @property
    def loaded(self) -> Loaded | None:
        """None until the model was ready for the first time."""
        if self._loaded is None and self.backend.info is not None:
            self._loaded = Loaded(self.backend, self.backend.info, self.options, self.clock)
        return self._loaded

    def why_not_ready(self) -> str | None:
        """Why no token can be produced for a new request; None if one can."""
        if self.draining:
            return "the server is shutting down"
        health = self.backend.health
        if health.state != "ready":
            return {"loading": "the model is still being loaded", "restarting": "the engine is starting again"}.get(
                health.state, "the engine has failed"
            )
        return None

    def ready(self) -> Loaded:
        """The model, to be asked now. Raises ApiError(503)."""
        why = self.why_not_ready()
        loaded = self.loaded
        if why is None and loaded is not None:
            return loaded
        self.meter.rejected(DRAINING if self.draining else NOT_READY)
        raise ApiError(503, SERVER, "overloaded", why or "the model is still being loaded", retry_after_s=1.0)

    def known(self) -> Loaded:
        """What is known of the model, even while the engine is starting again. Raises ApiError(503)."""
        loaded = self.loaded
        return loaded if loaded is not None else self.ready()

    def waiting(self) -> int:
        """Requests that wait in front of the engine."""
        return self._loaded.admission.waiting if self._loaded is not None else 0

    def unanswered(self) -> int:
        """Requests that will have a complete reply by themselves and have none yet."""
        return sum(not exchange.endless for exchange in self.open)

    def failed(self, exchange: Exchange, told: ApiError) -> None:
        """Log what was said of a failure and the client is not told; others' words only for whoever debugs."""
        if told.detail is None:
            return
        if told.status >= 500:
            self.log.error("request_failed", id=exchange.request_id, reason=own_words(told.detail))
        self.log.debug("request_failed", id=exchange.request_id, detail=told.detail)

    def end_all(self, reason: ApiError) -> None:
        """Answer what is open with this, wherever it is; what is not being computed is left alone."""
        for exchange in list(self.open):
            exchange.end(reason)

    async def engine_stats(self) -> dict[str, Any] | None:
        """The engine's own counters; None if there is no engine to ask, or it does not answer soon."""
        try:
            return await asyncio.wait_for(self.backend.stats(), STATS_TIMEOUT_S)
        except (KvikError, asyncio.TimeoutError):
            return None

    def counts(self) -> dict[str, Any]:
        """What waits and what runs, as this process sees it."""
        loaded = self._loaded
        return {
            "requests_open": self.unanswered(),
            "requests_queued": self.waiting(),
            "tokens_queued": loaded.admission.waiting_tokens if loaded else 0,
            "seats_taken": loaded.admission.inside if loaded else 0,
            "body_bytes": self.budget.used,
            "connections": self.connections(),
            "draining": self.draining,
        }

    def next_number(self) -> int:
        """A number that no other request has."""
        self._numbers += 1
        return self._numbers

    def close(self) -> None:
        """End the threads. Idempotent."""
        if self._loaded is not None:
            self._loaded.texts.close()
        if self.traces is not None:
            self.traces.close()
