"""Engine options: one frozen dataclass per concern, each field documented where it is declared.

Command-line flags, the keyword arguments of `LLM(...)` and the reference in docs/options.md are all derived from
these fields, so an option is added here and nowhere else. This file knows nothing of models, machines or the
environment; values that depend on those are `None` here and resolved by the room that knows.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from kvik.errors import ConfigError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(text: str | int) -> int:
    """Bytes from a size such as `4GiB`, `512MiB`, `2G` or a plain number. Raises ConfigError."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if not match:
        raise ConfigError(f"{text!r} is not a size; expected a number with an optional unit, such as 4GiB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2]])


def option(
    default: Any, help: str, *, choices: tuple[str, ...] = (), low: int | None = None, size: bool = False
) -> Any:
    """A dataclass field that carries its own documentation and limits (`low` is the least value allowed)."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "size": size})


def _check(options: Any) -> None:
    """Hold every field of a concern against the limits declared beside it. Raises ConfigError."""
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        if value is None:
            continue
        choices, low = f.metadata["choices"], f.metadata["low"]
        if choices and value not in choices:
            raise ConfigError(f"{f.name} is {value!r}; expected one of {', '.join(choices)}")
        if low is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            raise ConfigError(f"{f.name} is {value!r}; expected a whole number of at least {low}")
        if isinstance(f.default, bool) and not isinstance(value, bool):
            raise ConfigError(f"{f.name} is {value!r}; expected True or False")


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and in which form its weights are held."""

    model: str | None = option(
        None,
        "Hugging Face directory, hub id, dummy:NAME such as dummy:qwen3-0.6b (random weights of the real shapes), or "
        "fake: (known answers without a model, for tests). Default: the model in the box.",
    )
    weights: str = option(
        "auto",
        "Form of the weights in memory. auto keeps bf16 and f32 as stored and holds f16 as bf16. int8 (one scale per "
        "output) and int4 (a scale and a zero point per weight_group_size inputs) balance the channels and quantize "
        "every matrix on load, without calibration data.",
        choices=("auto", "bf16", "f32", "int8", "int4"),
    )
    weight_group_size: int = option(
        32, "Inputs that share an int4 scale: 32, 64 or 128. More take less memory; fewer lose less.", low=32
    )
    weight_symmetric: bool = option(
        False, "Give all int4 groups the zero point in the middle of their levels instead of the best one for each."
    )
    max_model_len: int | None = option(
        None, "Longest prompt plus answer of one request, in tokens. Default: what the model was trained for.", low=1
    )

    def __post_init__(self) -> None:
        _check(self)
        if self.weight_group_size not in (32, 64, 128):
            raise ConfigError(f"weight_group_size is {self.weight_group_size}; expected 32, 64 or 128")


@dataclass(frozen=True)
class CacheOptions:
    """The KV cache: how large, how divided, how shared."""

    kv_dtype: str = option(
        "auto",
        "Form of keys and values. auto is f32 for f32 weights, otherwise bf16. int8 has a scale per token and head. "
        "fp8 (e4m3, without scales) is for backend cuda alone.",
        choices=("auto", "bf16", "f32", "int8", "fp8"),
    )
    block_size: int = option(32, "Tokens in one KV block; a multiple of 32.", low=32)
    kv_cache_memory: int | None = option(
        None, "Memory for the KV cache, such as 4GiB. Default: what is free, less a margin.", low=1, size=True
    )
    kv_layout: str = option(
        "paged",
        "paged: blocks from a shared pool. contiguous: one block per request, as long as the longest request.",
        choices=("paged", "contiguous"),
    )
    prefix_caching: bool = option(True, "Reuse the KV blocks of a prompt's beginning that was computed before.")

    def __post_init__(self) -> None:
        _check(self)
        if self.block_size % 32:
            raise ConfigError(f"block_size is {self.block_size}; expected a multiple of 32")


@dataclass(frozen=True)
class SchedulerOptions:
    """Which requests get how many tokens in a step."""

    max_num_seqs: int = option(256, "Most requests in one step.", low=1)
    max_num_batched_tokens: int = option(2048, "Most tokens in one step, over all requests.", low=1)
    chunked_prefill: bool = option(True, "Compute a long prompt in pieces beside the decodes of other requests.")
    schedule: str = option(
        "mixed",
        "mixed: prompts and decodes share a step. separate: a step is all prompts or all decodes, prompts first.",
        choices=("mixed", "separate"),
    )
    batching: str = option(
        "continuous",
        "continuous: requests join and leave at any step. static: new requests only when all others have ended.",
        choices=("continuous", "static"),
    )

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class RunnerOptions:
    """Where and with what the model is computed."""

    backend: str = option(
        "auto",
        "auto: native if it was built, else reference (plain numpy, slow). cuda: one NVIDIA GPU or several; "
        "needs torch.",
        choices=("auto", "native", "cuda", "reference"),
    )
    isa: str = option(
        "auto",
        "Instruction set of the native kernels; auto takes the best this machine runs. `kvik info` lists them.",
        choices=("auto", "amx", "avx512bf16", "avx512vnni", "avx512", "avxvnni", "avx2", "portable", "amx-emulated"),
    )
    attention: str = option(
        "flash", "flash: online softmax, O(n) memory. naive: the whole score matrix.", choices=("flash", "naive")
    )
    threads: int | None = option(None, "Compute threads. Default: the cores this process may use.", low=1)
    enforce_eager: bool = option(False, "Run without captured graphs (CUDA; no effect on a CPU).")
    deterministic: bool = option(
        False,
        "Give a row the same bytes whatever else is in the batch, at some cost in speed (CUDA; no effect on a CPU, "
        "where that always holds).",
    )
    tensor_parallel_size: int = option(1, "Ranks that share one model (CUDA; 1 on a CPU).", low=1)
    seed: int = option(0, "Seed of requests that bring none, and of dummy weights.", low=0)

    def __post_init__(self) -> None:
        _check(self)
        if self.tensor_parallel_size != 1 and self.backend != "cuda":
            raise ConfigError(
                f"tensor_parallel_size is {self.tensor_parallel_size}; backend {self.backend!r} runs on 1 rank, "
                "expected backend 'cuda' for more"
            )


CONCERNS: dict[str, type] = {
    "model": ModelOptions,
    "cache": CacheOptions,
    "scheduler": SchedulerOptions,
    "runner": RunnerOptions,
}


@dataclass(frozen=True)
class EngineConfig:
    """All options of one engine. Built once, never edited."""

    model: ModelOptions = field(default_factory=ModelOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    runner: RunnerOptions = field(default_factory=RunnerOptions)

    def __post_init__(self) -> None:
        """Hold concerns against each other. Raises ConfigError."""
        if self.cache.kv_dtype == "fp8" and self.runner.backend != "cuda":
            raise ConfigError(f"kv_dtype is 'fp8'; backend {self.runner.backend!r} has no such form, expected 'cuda'")

    @classmethod
    def from_options(cls, **options: Any) -> EngineConfig:
        """Sort flat options into their concerns. Raises TypeError for an unknown name, ConfigError for a bad value."""
        known = {f.name: concern for concern, kind in CONCERNS.items() for f in dataclasses.fields(kind)}
        parts: dict[str, dict[str, Any]] = {concern: {} for concern in CONCERNS}
        for name, value in options.items():
            if name not in known:
                raise TypeError(f"unknown option {name!r}; known options: {', '.join(sorted(known))}")
            parts[known[name]][name] = value
        if isinstance(parts["cache"].get("kv_cache_memory"), str):
            parts["cache"]["kv_cache_memory"] = parse_size(parts["cache"]["kv_cache_memory"])
        return cls(**{concern: kind(**parts[concern]) for concern, kind in CONCERNS.items()})
