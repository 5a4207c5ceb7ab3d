"""What crosses between an engine and whoever uses it from outside: typed frames, and nothing else.

Commands go to the engine, events come from it. Both are tagged msgspec structs, so that the same objects are handed
over within a process and encoded between processes, where only these types can arise. This file knows nothing of
sockets, threads or HTTP.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kvik import errors
from kvik.config import EngineConfig
from kvik.errors import EngineError, InvalidRequestError, KvikError
from kvik.request import SamplingParams, TokenLogprobs


class Open(msgspec.Struct, frozen=True, tag=True):
    """The first command an engine process receives, and no other does: what to load. Answered by `ModelInfo` or
    `LoadFailed`.
    """

    config: EngineConfig
    beat_s: float
    directory: str
    """What relative paths start from."""


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Accept a request. Answered by `Moved` updates until each choice has a finish reason, or by `Failed`."""

    request_id: str
    token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    salt: bytes = b""


class Abort(msgspec.Struct, frozen=True, tag=True):
    """End a request with what it has. Answered by its last updates, unless it has ended already."""

    request_id: str


class AskStats(msgspec.Struct, frozen=True, tag=True):
    """Answered by `Stats` with the same number."""

    number: int


class Watch(msgspec.Struct, frozen=True, tag=True):
    """Send what every step did, or no longer."""

    on: bool


class Close(msgspec.Struct, frozen=True, tag=True):
    """Abort everything and end."""


Command = Open | Submit | Abort | AskStats | Watch | Close


class Update(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is new in one choice of a request since the update before."""

    request_id: str
    index: int
    text: str
    """Safe to show: whole characters, nothing that may begin a stop string."""
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    """One per token of `token_ids`, if asked for."""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    num_cached_tokens: int = 0
    """Of the prompt, found in the prefix cache."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """In the first update of choice 0, if asked for."""


class ModelInfo(msgspec.Struct, frozen=True, tag=True):
    """The engine has loaded and waits for requests."""

    name: str
    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    backend: str


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """There is no engine: it could not be loaded."""

    kind: str
    """Name of a class in kvik.errors."""
    message: str


class Moved(msgspec.Struct, frozen=True, tag=True):
    """The updates of one step."""

    updates: list[Update]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A request could not be accepted or computed; it has ended, with all its choices."""

    request_id: str
    kind: str
    """Name of a class in kvik.errors."""
    message: str
    param: str | None = None


class Stats(msgspec.Struct, frozen=True, tag=True):
    """`EngineStats.as_dict()` of now."""

    number: int
    values: dict[str, Any]


class Beat(msgspec.Struct, frozen=True, tag=True):
    """The engine's loop goes round: after a step that moved nothing, and every `beat_s` at least."""

    steps: int
    busy: bool
    """Whether anything is unfinished."""
    commands: int
    """Taken so far; what was asked by them and is not over has been sent all it will get, unless `busy`."""


class Step(msgspec.Struct, frozen=True, tag=True):
    """What one step did, for those who watch; see kvik/engine/events.py."""

    values: dict[str, Any]


Event = ModelInfo | LoadFailed | Moved | Failed | Stats | Beat | Step

_ERRORS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, KvikError)}


def failed(request_id: str, error: Exception) -> Failed:
    """The end of a request because of an error."""
    kind, message = described(error)
    return Failed(request_id, kind, message, error.param if isinstance(error, InvalidRequestError) else None)


def described(error: Exception) -> tuple[str, str]:
    """The name of an error's class in kvik.errors, and its message. What is not Kvik's own is an EngineError."""
    for kind in type(error).__mro__:
        if _ERRORS.get(kind.__name__) is kind:
            return kind.__name__, str(error)
    return EngineError.__name__, f"{type(error).__name__}: {error}"


def rebuilt(kind: str, message: str, param: str | None = None) -> KvikError:
    """The error that was described on the other side."""
    found = _ERRORS.get(kind, EngineError)
    return found(message, param=param) if issubclass(found, InvalidRequestError) else found(message)
