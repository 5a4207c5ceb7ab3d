"""ApiError: everything a client is told when a request fails, and how exceptions become that.

A body has exactly the four keys of the OpenAI specification, holds our own words and at most a short quotation of
what the client sent, and stays under 4 KiB whatever went wrong. What an engine says of its own failure, a library of a
grammar or a chat template of a conversation is no business of a client: it becomes a sentence of ours, and the rest is
for the log. Knows nothing of when an error happens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kvik.engine.remote.frames import Failed
from kvik.errors import InvalidRequestError
from kvik.server.protocol.sentences import own_sentence, template_sentence

INVALID = "invalid_request_error"
SERVER = "server_error"
CONTEXT_LENGTH = "context_length_exceeded"
"""The code of a request that is longer than the model's context."""
MAX_MESSAGE_CHARS = 600
MAX_PARAM_CHARS = 200
MAX_QUOTED_CHARS = 60
INTERNAL = "internal error; the server's log has more under this request's id"
ENGINE_FAILED = "the engine failed while it computed this answer; the same request may succeed when sent again"
NOT_A_NUMBER = "the model produced NaN or infinity while it computed this answer; it would again for the same request"


class ApiError(Exception):
    """A request that failed: status, the four keys of the body, and what the headers say about trying again.

    `retry_after_s` becomes Retry-After, `should_retry` becomes x-should-retry, which official clients obey.
    """

    def __init__(
        self,
        status: int,
        type: str,
        code: str | None,
        message: str,
        param: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.code = code
        self.message = _printable(message, MAX_MESSAGE_CHARS)
        self.param = None if param is None else _printable(param, MAX_PARAM_CHARS)
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        self.detail: str | None = None
        """What the engine, a library or a template said and the client is not told; for the log."""

    def as_dict(self) -> dict[str, dict[str, str | None]]:
        """The body as an object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The body as JSON, less than 4 KiB."""
        return msgspec.json.encode(self.as_dict())

    def headers(self) -> dict[str, str]:
        """Headers that go with the body; names in lower case."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request itself is at fault."""
    return ApiError(400, INVALID, code, message, param)


def unknown_model(name: str) -> ApiError:
    """404: no model of this name is served."""
    return ApiError(404, INVALID, "model_not_found", f"the model {shown(name)} is not served here", "model")


def deadline_exceeded() -> ApiError:
    """504: the deadline passed before the first token."""
    return ApiError(504, SERVER, "deadline_exceeded", "the deadline passed before the answer began")


def aborted() -> ApiError:
    """503: the server ended the request, because it is shutting down."""
    return ApiError(503, SERVER, "aborted", "the server ended this request before it was done", retry_after_s=1.0)


def client_too_slow() -> ApiError:
    """408, in the midst of a stream: nobody took what had been computed, and it has become too much to keep."""
    return ApiError(408, INVALID, "client_too_slow", "the answer was not read while it was computed, and was ended")


def shown(value: Any) -> str:
    """A client's value for a message: at most 60 characters of it, containers by their size."""
    if isinstance(value, str):
        short = repr(value[:MAX_QUOTED_CHARS])
        whole = len(value) <= MAX_QUOTED_CHARS and len(short) <= MAX_QUOTED_CHARS + 2
        return short if whole else short[: MAX_QUOTED_CHARS - 4] + "...'"
    if isinstance(value, dict):
        return f"an object with {len(value)} keys"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number beyond 64 bits"
    return repr(value)[:MAX_QUOTED_CHARS]


def _printable(text: str, limit: int) -> str:
    """One line without control characters, so that it is safe in a terminal and a log."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return cut if cut.isprintable() else "".join(char if char.isprintable() else " " for char in cut)


@dataclass(frozen=True)
class _Row:
    """What one exception is to a client."""

    status: int
    type: str
    code: str | None = None
    param: str | None = None
    should_retry: bool | None = None
    message: str | None = None
    """The sentence that a client is told; None: the exception's own, which was written for users, as far as it is."""
    of_template: bool = False


_ROWS: Mapping[str, _Row] = {
    "ContextLengthError": _Row(400, INVALID, CONTEXT_LENGTH, "prompt"),
    "InvalidRequestError": _Row(400, INVALID),
    "TemplateError": _Row(400, INVALID, None, "messages", of_template=True),
    "OverloadedError": _Row(503, SERVER, "overloaded"),
    "NotEnoughMemoryError": _Row(503, SERVER, "overloaded"),
    "EngineError": _Row(500, SERVER, message=ENGINE_FAILED),
    "NumericalError": _Row(500, SERVER, "numerical_error", should_retry=False, message=NOT_A_NUMBER),
}
"""By the name of a class in kvik.errors; what is not here is our own fault and its message stays inside."""


def _from_row(row: _Row, message: str, param: str | None, names: Mapping[str, str], retry: float | None) -> ApiError:
    at_fault = param or row.param
    if at_fault is not None:
        at_fault = names.get(at_fault, at_fault)
    retry = (retry or 1.0) if row.status == 503 else None
    told = row.message or (template_sentence if row.of_template else own_sentence)(message)
    made = ApiError(row.status, row.type, row.code, told, at_fault, retry, row.should_retry)
    made.detail = None if told == message else message
    return made


def from_exception(error: Exception, names: Mapping[str, str] | None = None) -> ApiError:
    """What a client is told about an exception. `names` says what the engine's parameters are called in this call
    (`prompt` is `messages` in a chat); calls have it as `param_names`.
    """
    if isinstance(error, ApiError):
        return error
    row = next((_ROWS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _ROWS), None)
    if row is None:
        return ApiError(500, SERVER, None, INTERNAL)
    param = error.param if isinstance(error, InvalidRequestError) else None
    return _from_row(row, str(error), param, names or {}, getattr(error, "retry_after_s", None))


def from_failed(failed: Failed, names: Mapping[str, str] | None = None) -> ApiError:
    """The same for a failure that an engine reported by name."""
    row = _ROWS.get(failed.kind)
    if row is None:
        return ApiError(500, SERVER, None, INTERNAL)
    return _from_row(row, failed.message, failed.param, names or {}, None)
