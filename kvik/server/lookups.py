"""The routes that answer from what is known: models, health, statistics, tokens of a text.

Health tells the truth and no more: live as long as this process can get well by itself, ready as long as a new request
would be answered. Both need no key, so they say nothing that a stranger should not know.
"""

from __future__ import annotations

from typing import Any

from kvik.server.answers import read
from kvik.server.exchange import Exchange
from kvik.server.protocol.models import find_model, model_body, models_body
from kvik.server.protocol.sse import to_json
from kvik.server.protocol.tokenize import detokenize_body, read_detokenize, read_tokenize, tokenize_body
from kvik.server.service import Service

RETRY: list[tuple[bytes, bytes]] = [(b"retry-after", b"1")]


async def models(service: Service, exchange: Exchange) -> None:
    """GET /v1/models."""
    await exchange.reply(200, models_body(service.known().models))


async def model(service: Service, exchange: Exchange) -> None:
    """GET /v1/models/{id}, where an id may hold slashes."""
    found = find_model(service.known().models, exchange.scope["path_params"]["id"])
    await exchange.reply(200, model_body(found))


async def tokenize(service: Service, exchange: Exchange) -> None:
    """POST /tokenize."""
    loaded = service.known()
    call = await read(service, loaded, exchange, read_tokenize)
    if call.model is not None:
        find_model(loaded.models, call.model)
    texts = loaded.texts
    async with exchange.watched():
        if call.conversation is not None:
            token_ids = (await texts.chat(call.conversation)).token_ids
        else:
            token_ids = (await texts.prompts([call.prompt or ""], call.add_special_tokens))[0]
    spell = texts.token_bytes if call.with_strings else None
    await exchange.reply(200, tokenize_body(token_ids, loaded.info.max_model_len, spell))


async def detokenize(service: Service, exchange: Exchange) -> None:
    """POST /detokenize."""
    loaded = service.known()
    call = await read(service, loaded, exchange, read_detokenize)
    if call.model is not None:
        find_model(loaded.models, call.model)
    async with exchange.watched():
        text = await loaded.texts.decode(call.token_ids, skip_special_tokens=False)
    await exchange.reply(200, detokenize_body(text))


async def live(service: Service, exchange: Exchange) -> None:
    """GET /health/live: whether there is any point in waiting for this process."""
    failed = service.backend.health.state == "failed"
    await exchange.reply(503 if failed else 200, to_json({"status": "failed" if failed else "alive"}))


async def ready(service: Service, exchange: Exchange) -> None:
    """GET /health and /health/ready: whether a request sent now would be answered."""
    health = service.backend.health
    why = service.why_not_ready()
    state = "draining" if service.draining else health.state
    said = {
        "status": state if why is None or service.draining or state != "ready" else "loading",
        "progress_age_seconds": round(health.progress_age_s, 3),
        "restarts": health.restarts,
    }
    await exchange.reply(200 if why is None else 503, to_json(said), headers=[] if why is None else RETRY)


async def stats(service: Service, exchange: Exchange) -> None:
    """GET /stats: one snapshot of everything that is counted; `engine` is null while there is none."""
    await exchange.reply(200, to_json(await snapshot(service)))


async def snapshot(service: Service) -> dict[str, Any]:
    """The health of the engine, the queue in front of it, and the engine's own counters."""
    health, loaded = service.backend.health, service.loaded
    engine = await service.engine_stats()
    return {
        "health": {
            "state": health.state,
            "progress_age_seconds": round(health.progress_age_s, 3),
            "restarts": health.restarts,
            "reason": health.reason,
        },
        "model": None if loaded is None else {"names": [each.id for each in loaded.models]} | to_plain(loaded.info),
        "server": service.counts(),
        "engine": engine,
    }


def to_plain(info: Any) -> dict[str, Any]:
    """A model's figures without the tag that frames have."""
    return {name: getattr(info, name) for name in info.__struct_fields__}
