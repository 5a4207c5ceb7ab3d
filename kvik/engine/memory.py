"""The memory plan: what the weights take, what the KV cache may take, how many tokens and sequences fit.

    available = weights + activations + margin + KV
                                                KV = num_blocks x block_size x kv_bytes_per_token

The same arithmetic serves before loading (`kvik info --model M`, figures from the files' headers) and after (figures
from the runner, weights already taken). This file knows nothing of how free memory is found, nor of who holds a block.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.spec import DecoderSpec
from kvik.config import CacheOptions, EngineConfig
from kvik.errors import ConfigError, NotEnoughMemoryError
from kvik.runners.forms import kv_head_bytes, padded
from kvik.runners.holding import PANEL, held_weights, total_bytes
from kvik.runners.runner import Runner, kv_form, weight_form

MIN_MARGIN = 256 * 2**20
MARGIN_FRACTION = 0.10
MAX_SLOTS = 2**31 - 1
SLOT_QUANTUM = 32


@dataclass(frozen=True)
class ModelFigures:
    """What a model takes, in bytes, before or after it is loaded."""

    name: str
    weights: int
    kv_bytes_per_token: int
    activations: int
    max_position: int
    loaded: bool = False
    """The weights are already in memory, so what is free is free of them."""

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, config: EngineConfig, backend: str) -> ModelFigures:
        """Figures of a model that is not loaded. The reference runner holds everything as float32; the native one pads
        heads to multiples of 32; of several ranks, what each takes. Raises CheckpointError for a quantized weight that
        no form holds.
        """
        spec, model = checkpoint.spec, config.model
        kv = kv_form(config.cache.kv_dtype, weight_form(model.weights, spec.dtype))
        kv = "f32" if backend == "reference" else kv
        head_dim = padded(spec.head_dim, PANEL if backend == "native" else 1)
        per_token = spec.num_layers * spec.num_kv_heads * kv_head_bytes(head_dim, kv)
        weights = total_bytes(held_weights(checkpoint, model.weights, backend, model.weight_group_size), backend)
        ranks = config.runner.tensor_parallel_size
        return cls(
            checkpoint.name, weights // ranks, per_token // ranks, activation_bytes(spec, config), spec.max_position
        )

    @classmethod
    def of_runner(cls, name: str, spec: DecoderSpec, config: EngineConfig, runner: Runner) -> ModelFigures:
        """Figures of a model that a runner has loaded."""
        weights = runner.memory().weights
        per_token = runner.kv_bytes_per_token()
        return cls(name, weights, per_token, activation_bytes(spec, config), spec.max_position, loaded=True)


def activation_bytes(spec: DecoderSpec, config: EngineConfig) -> int:
    """An estimate from above: the float32 buffers of the widest layer for a full step, and its rows of logits."""
    heads = (spec.num_heads + spec.num_kv_heads) * 2 * spec.head_dim
    widths = 3 * spec.hidden_size + max(heads, 2 * spec.intermediate_size)
    rows = min(config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens)
    return 4 * (config.scheduler.max_num_batched_tokens * widths + rows * spec.vocab_size)


@dataclass(frozen=True)
class MemoryPlan:
    """Where the memory goes. Bytes, unless a name says tokens, blocks or sequences."""

    model: str
    available: int
    weights: int
    loaded: bool
    activations: int
    margin: int
    kv_bytes_per_token: int
    block_size: int
    num_blocks: int
    max_model_len: int
    max_position: int

    @property
    def kv(self) -> int:
        """Bytes of the KV cache."""
        return self.num_tokens * self.kv_bytes_per_token

    @property
    def num_tokens(self) -> int:
        """Tokens the KV cache holds."""
        return self.num_blocks * self.block_size

    @property
    def num_sequences(self) -> int:
        """Sequences of max_model_len tokens that the KV cache holds at once."""
        return self.num_blocks // blocks_for(self.max_model_len, self.block_size)

    def lines(self) -> list[str]:
        """The plan for people, one fact a line."""
        limit = "what the model was trained for"
        if self.max_model_len < self.max_position:
            limit = f"the model was trained for {self.max_position:,}"
        return [
            f"model               {self.model}",
            f"memory available    {human(self.available)}{' after loading the weights' if self.loaded else ''}",
            f"weights             {human(self.weights)}",
            f"activations         {human(self.activations)} (estimate from above)",
            f"margin              {human(self.margin)}",
            f"KV cache            {human(self.kv)} = {self.num_blocks:,} blocks x {self.block_size:,} tokens"
            f" x {human(self.kv_bytes_per_token)}",
            f"tokens that fit     {self.num_tokens:,}",
            f"longest request     {self.max_model_len:,} tokens ({limit})",
            f"sequences that fit  {self.num_sequences:,} of the longest length",
        ]


def plan_memory(figures: ModelFigures, available: int, config: EngineConfig) -> MemoryPlan:
    """Divide `available` bytes. By default the KV cache takes what is left, but never more than max_num_seqs
    requests of the longest length could use.

    Raises ConfigError if max_model_len is beyond the model, NotEnoughMemoryError if one sequence does not fit.
    """
    wanted = config.model.max_model_len
    if wanted is not None and wanted > figures.max_position:
        raise ConfigError(
            f"max_model_len is {wanted}; expected at most {figures.max_position}, what {figures.name} was trained for"
        )
    margin = max(MIN_MARGIN, int(available * MARGIN_FRACTION))
    budget = _kv_budget(figures, available, margin, config.cache)
    longest = _longest(figures, budget, config)
    block_size, num_blocks = _blocks(figures, budget, longest, config)
    return MemoryPlan(
        model=figures.name,
        available=available,
        weights=figures.weights,
        loaded=figures.loaded,
        activations=figures.activations,
        margin=margin,
        kv_bytes_per_token=figures.kv_bytes_per_token,
        block_size=block_size,
        num_blocks=num_blocks,
        max_model_len=longest,
        max_position=figures.max_position,
    )


def _kv_budget(figures: ModelFigures, available: int, margin: int, cache: CacheOptions) -> int:
    """Bytes the KV cache may take. A size that was asked for is held against all that is free, margin included."""
    weights = 0 if figures.loaded else figures.weights
    asked = cache.kv_cache_memory
    if asked is None:
        return max(0, available - weights - figures.activations - margin)
    needed = weights + figures.activations + asked
    if needed > available:
        raise NotEnoughMemoryError(
            f"{figures.name} with a KV cache of {human(asked)} needs {human(needed)}; "
            f"{human(available)} are available: lower kv_cache_memory or max_num_batched_tokens"
        )
    return asked


def _longest(figures: ModelFigures, budget: int, config: EngineConfig) -> int:
    """Tokens of the longest request: as asked for, or the model's length if that fits, or what fits."""
    quantum = config.cache.block_size if config.cache.kv_layout == "paged" else SLOT_QUANTUM
    fitting = budget // (figures.kv_bytes_per_token * quantum) * quantum
    wanted = config.model.max_model_len
    longest = min(figures.max_position, fitting) if wanted is None else wanted
    if fitting < max(longest, 1):
        _refuse(figures, budget, max(longest, 1), fitting, quantum)
    return longest


def _refuse(figures: ModelFigures, budget: int, longest: int, fitting: int, quantum: int) -> None:
    needed = blocks_for(longest, quantum) * quantum * figures.kv_bytes_per_token
    remedy = f"lower max_model_len to at most {fitting}" if fitting else "free memory or use a smaller model"
    raise NotEnoughMemoryError(
        f"one sequence of {longest} tokens of {figures.name} needs {human(needed)} of KV cache; {human(budget)} are "
        f"available for it beside weights of {human(figures.weights)}: {remedy}, or raise kv_cache_memory if it is set"
    )


def _blocks(figures: ModelFigures, budget: int, longest: int, config: EngineConfig) -> tuple[int, int]:
    """(block_size, num_blocks) of the layout. Slots are counted in 32 bits, hence the cap."""
    seqs = config.scheduler.max_num_seqs
    paged = config.cache.kv_layout == "paged"
    block_size = config.cache.block_size if paged else blocks_for(longest, SLOT_QUANTUM) * SLOT_QUANTUM
    usable = seqs * blocks_for(longest, block_size)
    fitting = min(budget // (figures.kv_bytes_per_token * block_size), MAX_SLOTS // block_size)
    if paged and config.cache.kv_cache_memory is not None:
        return block_size, fitting
    return block_size, min(fitting, usable)


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold this many tokens."""
    return -(-tokens // block_size)


def human(count: int) -> str:
    """A size such as 1.19 GiB."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} B"
