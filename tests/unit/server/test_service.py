"""Whether the server can answer, with an engine that says what it is told to say."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvik.engine.remote.frames import ModelInfo
from kvik.errors import EngineError
from kvik.server.app import App
from kvik.server.logs import Log
from kvik.server.options import ServerOptions
from kvik.server.protocol.errors import ApiError
from kvik.server.service import LEAST_TEXT_CHARS, MAX_TEXT_CHARS, Service, default_names

SECRET = "/home/somebody/secret-model is broken"


def info(max_model_len: int = 4096) -> ModelInfo:
    return ModelInfo("m", max_model_len, 1000, 64, 32, 8, 256, "fake")


@dataclass
class Health:
    state: str = "ready"
    progress_age_s: float = 0.5
    restarts: int = 0
    reason: str | None = None


@dataclass
class Engine:
    """A backend that computes nothing."""

    health: Health = field(default_factory=Health)
    info: ModelInfo | None = None
    tokenizer: Any = None

    async def stats(self) -> dict[str, Any]:
        raise EngineError("not now")


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log(io.StringIO())
    yield log
    log.close()


def get(service: Service, path: str) -> tuple[int, bytes, dict[bytes, bytes]]:
    """One request without a server around the application."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [(b"host", b"localhost")],
        "client": ("1.1.1.1", 1),
    }
    asyncio.run(App(service)(scope, receive, send))
    return sent[0]["status"], b"".join(each["body"] for each in sent[1:]), dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("state", "live", "ready"),
    [("loading", 200, 503), ("ready", 200, 200), ("restarting", 200, 503), ("failed", 503, 503)],
)
def test_health_is_what_the_engine_is(log: Log, state: str, live: int, ready: int) -> None:
    engine = Engine(Health(state, reason=SECRET), info() if state != "loading" else None)
    service = Service(engine, ServerOptions(), log)
    assert get(service, "/health/live")[0] == live
    for path in ("/health", "/health/ready"):
        status, body, headers = get(service, path)
        assert status == ready
        assert (b"retry-after" in headers) == (ready == 503)
        assert b"secret" not in body, "strangers need not know why"
        assert state.encode() in body
    service.close()


def test_a_server_that_drains_is_alive_and_not_ready(log: Log) -> None:
    service = Service(Engine(info=info()), ServerOptions(), log)
    service.draining = True
    assert get(service, "/health/live")[0] == 200
    assert get(service, "/health")[0] == 503
    with pytest.raises(ApiError) as refused:
        service.ready()
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    assert refused.value.retry_after_s is not None
    service.close()


def test_what_was_known_stays_known_while_the_engine_starts_again(log: Log) -> None:
    engine = Engine(info=info())
    service = Service(engine, ServerOptions(), log)
    loaded = service.ready()
    engine.health = Health("restarting")
    with pytest.raises(ApiError):
        service.ready()
    assert service.known() is loaded
    assert get(service, "/v1/models")[0] == 200
    service.close()


def test_before_a_model_is_loaded_there_are_no_models(log: Log) -> None:
    service = Service(Engine(Health("loading")), ServerOptions(), log)
    assert get(service, "/v1/models")[0] == 503
    status, body, _ = get(service, "/stats")
    assert status == 200
    assert b'"engine":null' in body
    assert b'"model":null' in body


@pytest.mark.parametrize(("context", "chars"), [(100, LEAST_TEXT_CHARS), (32768, 32 * 32768), (10**6, MAX_TEXT_CHARS)])
def test_texts_are_bounded_by_what_the_context_could_hold(log: Log, context: int, chars: int) -> None:
    service = Service(Engine(info=info(context)), ServerOptions(), log)
    assert service.ready().terms.max_text_chars == chars
    service.close()


def test_a_model_goes_by_its_name_and_by_the_last_part_of_a_path() -> None:
    assert default_names("org/model") == ("org/model",)
    assert default_names("/models/llama") == ("/models/llama", "llama")


def test_names_that_were_given_are_the_only_ones(log: Log) -> None:
    options = ServerOptions.from_options(served_model_name=("a", "b"))
    service = Service(Engine(info=info()), options, log)
    assert [model.id for model in service.ready().models] == ["a", "b"]
    service.close()
