"""CudaRunner: executes StepPlans on one device with torch, one forward pass over all rows of a step.

On an NVIDIA GPU the operations between the products are Triton kernels and decode steps are replayed from captured
graphs; on the CPU device the same code runs in plain torch, for tests. It knows nothing of requests or text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.spec import DecoderSpec
from kvik.config import RunnerOptions
from kvik.errors import BackendError, ConfigError
from kvik.runners.balance import balanced
from kvik.runners.cuda.batch import batch_of
from kvik.runners.cuda.cache import FORMS, KVCache, kv_bytes_per_token
from kvik.runners.cuda.decoder import Decoder
from kvik.runners.cuda.device_memory import DeviceMemory, device_errors, memory_of
from kvik.runners.cuda.graphs import Graphs
from kvik.runners.cuda.heads import Heads
from kvik.runners.cuda.largest import BLOCK, largest_plan
from kvik.runners.cuda.operations import Operations, choose_operations
from kvik.runners.cuda.presence import refusal
from kvik.runners.cuda.quantizing import Rounding
from kvik.runners.cuda.ranks import Alone, Ranks, check_divisible
from kvik.runners.cuda.sampling import Sampler
from kvik.runners.cuda.weights import Loader, compute_dtype
from kvik.runners.forms import GROUP
from kvik.runners.reference.runner import check_token_ids
from kvik.runners.runner import KernelChoice, MemoryUse, kv_form, weight_form
from kvik.step import Float32, Int32, StepPlan, StepResult


class CudaRunner:
    """The Runner protocol with torch. `device` is the current GPU unless a test names another.

    Raises BackendError if there is no such device, ConfigError for a KV form that it does not hold.
    """

    name = "cuda"

    def __init__(
        self,
        options: RunnerOptions,
        *,
        weights: str = "auto",
        kv_dtype: str = "auto",
        group_size: int = GROUP,
        symmetric: bool = False,
        deterministic: bool = False,
        device: str = "cuda",
        ranks: Ranks | None = None,
        operations: Operations | None = None,
        memory: DeviceMemory | None = None,
    ) -> None:
        if device != "cpu" and (why := refusal()) is not None:
            raise BackendError(f"backend is 'cuda', which cannot serve here: {why}")
        self.device = torch.device(device)
        self._options, self._weights, self._kv_dtype = options, weights, kv_dtype
        self._rounding = Rounding(weights, group_size, symmetric) if weights in ("int8", "int4") else None
        self._ops = operations or choose_operations(self.device, options.attention, deterministic=deterministic)
        self._ranks = ranks or Alone()
        self._sampler = Sampler(self.device)
        self._memory = memory or memory_of(self.device)
        self._spec: DecoderSpec | None = None
        self._kv_form = ""
        self._decoder: Decoder | None = None
        self._cache: KVCache | None = None
        self._graphs: Graphs | None = None

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size

    @property
    def seed(self) -> int:
        """Of dummy weights."""
        return self._options.seed

    @property
    def spec(self) -> DecoderSpec:
        """The loaded model's. Raises BackendError before `load`."""
        if self._spec is None:
            raise BackendError("no model is loaded")
        return self._spec

    @property
    def heads(self) -> Heads:
        """Of this rank."""
        spec, size = self.spec, self._ranks.size
        return Heads(spec.num_heads // size, spec.num_kv_heads // size, spec.head_dim)

    @torch.inference_mode()
    def load(self, checkpoint: Checkpoint) -> None:
        """Take this rank's weights. Raises CheckpointError, ConfigError, NotEnoughMemoryError."""
        self.close()
        spec = checkpoint.spec
        check_divisible(spec, self._ranks.size)
        form = weight_form(self._weights, spec.dtype)
        self._kv_form = kv_form(self._kv_dtype, form)
        if self._kv_form not in FORMS:
            raise ConfigError(f"kv_dtype is {self._kv_form!r}; the cuda runner holds one of {', '.join(FORMS)}")
        dtype = compute_dtype(spec, form, self.device)
        loader = Loader(
            balanced(checkpoint, form),
            self._ranks,
            self.device,
            dtype,
            self._rounding,
            self._ops.multiply,
            self._ops.linear,
        )
        with device_errors(f"the weights of {checkpoint.name}", "use a smaller model, or weights of fewer bits"):
            self._decoder = Decoder(loader.load(), self._ops, self._ranks.add_up)
        self._spec = spec

    def kv_bytes_per_token(self) -> int:
        return kv_bytes_per_token(self.spec.num_layers, self.heads, self._kv_form)

    @torch.inference_mode()
    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Reserve blocks 0 .. num_blocks - 1, zeroed, and capture the decode steps. Raises NotEnoughMemoryError."""
        decoder = self._loaded()
        self._cache = self._graphs = None
        cache = self._new_cache(num_blocks, block_size)
        self._cache = cache
        if self._ops.capturable and self.device.type == "cuda" and not self._options.enforce_eager:
            width = min(num_blocks, -(-self.spec.max_position // block_size))
            self._graphs = Graphs(decoder, cache, width, self.device)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Copy blocks, compute every row, then draw and score. NaN or infinity fails the draws of its row alone.

        Raises ValueError for ids outside the vocabulary or the cache, NotEnoughMemoryError, RunnerGoneError.
        """
        with device_errors(f"a step of {plan.num_tokens} tokens", "lower max_num_batched_tokens or max_num_seqs"):
            hidden = self._forward(plan)
            drawn = self._logits_at(hidden, plan.query_start_loc[plan.sample.rows + 1] - 1)
            tokens, failed, sampled = self._sampler.draw(plan.sample, drawn)
            scored = self._sampler.score(plan.score, self._logits_at(hidden, plan.score.indices))
        return StepResult(tokens, failed, sampled, scored)

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> Float32:
        """Logits after every token of the plan, float32 [T, vocab_size]."""
        values: Float32 = self._loaded().logits(self._forward(plan)).cpu().numpy()
        return values

    def free_memory(self) -> int:
        """Bytes that are free where weights, keys and values lie."""
        return self._memory.free()

    def peak_bytes(self, num_tokens: int, num_rows: int) -> int:
        """The most bytes that a step of so many tokens and rows holds beside weights and cache: one is run to see. For
        before `allocate`, since it leaves no cache. Raises NotEnoughMemoryError.
        """
        plan = largest_plan(num_tokens, num_rows, self.spec.max_position)
        self._cache, self._graphs = self._new_cache(1, BLOCK), None
        try:
            return self._memory.peak(lambda: self.run(plan))
        finally:
            self._cache = None

    def memory(self) -> MemoryUse:
        """Bytes of weights and KV on the device, and what captured graphs keep."""
        return MemoryUse(
            weights=self._decoder.weights.nbytes if self._decoder else 0,
            kv=self._cache.nbytes if self._cache else 0,
            activations=self._graphs.nbytes if self._graphs else 0,
        )

    def kernels(self) -> KernelChoice:
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu, for tests"
        graphs = f"; {self._graphs.report()}" if self._graphs else ""
        return KernelChoice(chosen=f"cuda: {'Triton' if self._ops.capturable else 'plain torch'} on {where}{graphs}")

    def close(self) -> None:
        self._graphs = None
        self._cache = None
        self._decoder = self._spec = None

    def _new_cache(self, num_blocks: int, block_size: int) -> KVCache:
        with device_errors(f"{num_blocks} KV blocks of {block_size} tokens", "lower kv_cache_memory"):
            layers = self.spec.num_layers
            return KVCache(layers, num_blocks, block_size, self.heads, form=self._kv_form, device=self.device)

    def _forward(self, plan: StepPlan) -> torch.Tensor:
        """Residuals of all tokens after the final norm, [T, hidden_size]."""
        decoder, cache = self._loaded(), self._allocated()
        self.check(plan)
        cache.copy_blocks(plan.copies)
        if self._graphs is not None and self._graphs.serves(plan):
            return self._graphs.replay(plan)
        batch = batch_of(plan, cache.block_size, self._ops.tile_size(self.heads), self.device)
        return decoder.hidden(batch, cache)

    def _logits_at(self, hidden: torch.Tensor, indices: Int32) -> torch.Tensor:
        """[n, V] at flat token indices [n]."""
        if not len(indices):
            return hidden.new_empty(0, self.vocab_size, dtype=torch.float32)
        once, where = np.unique(indices, return_inverse=True)
        return rows_of(self._loaded().logits(rows_of(hidden, once)), where)

    def check(self, plan: StepPlan) -> None:
        """Raises ValueError for ids outside the vocabulary or the cache, which on a device would end all work there."""
        check_token_ids(plan, self.vocab_size)
        cache = self._allocated()
        if plan.seq_lens.max(initial=0) > self.spec.max_position:
            raise ValueError(f"a row has {plan.seq_lens.max()} tokens; expected at most {self.spec.max_position}")
        needed = -(-plan.seq_lens // cache.block_size)
        used = np.arange(plan.block_tables.shape[1]) < needed[:, None]
        if (needed > plan.block_tables.shape[1]).any():
            raise ValueError(f"a row needs {needed.max()} blocks; its table has {plan.block_tables.shape[1]}")
        for blocks, what in ((plan.block_tables[used], "block table"), (plan.copies, "copy")):
            wrong = blocks[(blocks < 0) | (blocks >= cache.num_blocks)]
            if wrong.size:
                raise ValueError(f"a {what} names block {wrong[0]}; expected 0 to {cache.num_blocks - 1}")

    def _loaded(self) -> Decoder:
        if self._decoder is None:
            raise BackendError("no model is loaded")
        return self._decoder

    def _allocated(self) -> KVCache:
        if self._cache is None:
            raise BackendError("no KV cache is allocated")
        return self._cache


def rows_of(values: torch.Tensor, index: NDArray[np.integer[Any]]) -> torch.Tensor:
    """values[index], and values itself where that is all of it in order."""
    if len(index) == len(values) and (index == np.arange(len(index))).all():
        return values
    return values[torch.from_numpy(np.asarray(index, np.int64)).to(values.device)]
