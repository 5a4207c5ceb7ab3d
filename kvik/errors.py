"""The tree of exceptions.

Every error a user can cause is one of these, and its message names the thing, the value, what was expected
and, where there is something to do, what to do. The command line turns any `KvikError` into one line on stderr
and exit status 2. This file knows nothing of where errors are raised.
"""

from __future__ import annotations


class KvikError(Exception):
    """Base of everything Kvik raises on purpose."""


class ConfigError(KvikError, ValueError):
    """An engine option has a value it cannot have."""


class InvalidRequestError(KvikError, ValueError):
    """A request asks for something impossible. `param` is the field at fault, in the words of the API."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """The prompt, or prompt and answer together, do not fit the model or the KV cache."""


class CheckpointError(KvikError):
    """A file of a model is missing, truncated, contradicts itself or cannot be read."""


class UnsupportedModelError(CheckpointError):
    """A checkpoint asks for something Kvik does not do; the message lists what it does."""


class TemplateError(KvikError, ValueError):
    """A chat template cannot be compiled, raised, or ran past its limits."""


class NotEnoughMemoryError(KvikError, MemoryError):
    """Weights or KV cache do not fit; the message says how much is needed, how much is there, what to lower."""


class BackendError(KvikError, RuntimeError):
    """A backend or instruction set that was asked for by name cannot serve here; the message says why."""


class NumericalError(KvikError, ArithmeticError):
    """The model produced NaN or infinity for one request; the others are unaffected."""


class EngineError(KvikError, RuntimeError):
    """The engine died, hung or lost a request; the same request may succeed when sent again."""


class RunnerGoneError(EngineError):
    """What computes is gone for good, such as a rank that died; only another engine can go on."""


class OverloadedError(KvikError, RuntimeError):
    """There is no room for another request now. `retry_after_s` says when there may be."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
