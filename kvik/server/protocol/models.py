"""The bodies of /v1/models, and the one place where a model's name is looked up.

A name is a key and nothing else: it is never part of a path, and it may hold slashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvik.server.protocol.errors import unknown_model
from kvik.server.protocol.sse import to_json


@dataclass(frozen=True)
class ServedModel:
    """One model under one name."""

    id: str
    created: int
    """Seconds since 1970."""
    max_model_len: int
    owned_by: str = "kvik"

    def as_dict(self) -> dict[str, Any]:
        """The model as the API describes it, and how long its context is."""
        described = {"id": self.id, "object": "model", "created": self.created, "owned_by": self.owned_by}
        return described | {"max_model_len": self.max_model_len}


def find_model(models: Sequence[ServedModel], name: str) -> ServedModel:
    """The model of this name. Raises ApiError(404)."""
    found = next((model for model in models if model.id == name), None)
    if found is None:
        raise unknown_model(name)
    return found


def models_body(models: Sequence[ServedModel]) -> bytes:
    """The reply of /v1/models."""
    return to_json({"object": "list", "data": [model.as_dict() for model in models]})


def model_body(model: ServedModel) -> bytes:
    """The reply of /v1/models/{id}."""
    return to_json(model.as_dict())
