"""The seven rungs M1 to M7: each is the options of the one below it and one more.

There is one engine; every rung is that engine with something switched off. This file knows the names of options and
nothing of how they are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvik.errors import ConfigError


@dataclass(frozen=True)
class Rung:
    """One step of the ladder: its name, what it is called, the option that it changes and to what."""

    name: str
    title: str
    option: str
    value: Any

    @property
    def flag(self) -> str:
        """The option as it is given on the command line."""
        spelled = self.option.replace("_", "-")
        if isinstance(self.value, bool):
            return f"--{spelled}" if self.value else f"--no-{spelled}"
        return f"--{spelled} {self.value}"


GROUND: Mapping[str, Any] = {
    "kv_layout": "contiguous",
    "batching": "static",
    "attention": "naive",
    "chunked_prefill": False,
    "prefix_caching": False,
    "weights": "auto",
}
"""Everything that a rung adds, switched off."""

RUNGS = (
    Rung("M1", "static batches", "batching", "static"),
    Rung("M2", "continuous batching", "batching", "continuous"),
    Rung("M3", "paged KV cache", "kv_layout", "paged"),
    Rung("M4", "flash attention", "attention", "flash"),
    Rung("M5", "chunked prefill", "chunked_prefill", True),
    Rung("M6", "prefix caching", "prefix_caching", True),
    Rung("M7", "4-bit weights", "weights", "int4"),
)
NAMES = tuple(rung.name for rung in RUNGS)
SET_BY_LADDER = (*GROUND, "max_num_batched_tokens", "max_num_seqs", "max_model_len", "kv_cache_memory", "schedule")
"""Options that the ladder chooses itself."""


def rung_named(name: str) -> Rung:
    """Raises ConfigError for a name that no rung has."""
    for rung in RUNGS:
        if rung.name == name:
            return rung
    raise ConfigError(f"rung is {name!r}; expected one of {', '.join(NAMES)}")


def options_of(name: str) -> dict[str, Any]:
    """The options of a rung: the ground's, and those that it and every rung below it add."""
    index = NAMES.index(rung_named(name).name)
    return {**GROUND, **{rung.option: rung.value for rung in RUNGS[: index + 1]}}
