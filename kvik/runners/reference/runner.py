"""ReferenceRunner: executes StepPlans with the numpy decoder, one row after another.

Each row is computed as if it were alone, so what a row produces cannot depend on its neighbours; and since the decoder
treats tokens one by one, not on chunking either. Weights and KV are held as float32; asking for bf16, int8 or int4
replaces their values by what that form keeps (int8 and int4 of the balanced model) and still computes in float32,
which is what such a model with perfect arithmetic would answer.
This file knows nothing of how a token is drawn from logits, nor of policy.
"""

from __future__ import annotations

import os

import numpy as np

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.config import RunnerOptions
from kvik.errors import ConfigError, NotEnoughMemoryError
from kvik.runners.balance import balanced
from kvik.runners.forms import GROUP
from kvik.runners.reference import sampling
from kvik.runners.reference.attention import attend
from kvik.runners.reference.decoder import Decoder
from kvik.runners.reference.kv_cache import KVCache
from kvik.runners.reference.quantized import kept_weight
from kvik.runners.runner import KernelChoice, MemoryUse, weight_form
from kvik.step import Float32, StepPlan, StepResult

FORMS = {"weights": ("auto", "f32", "bf16", "int8", "int4"), "kv_dtype": ("auto", "f32", "bf16", "int8")}


class ReferenceRunner:
    """The Runner protocol in plain numpy. `options.attention` may be flash or naive: both are the same here.

    weights: auto holds bf16 and f32 exactly and rounds f16 to bf16; f32 holds all exactly; bf16 rounds; int8 and int4
    balance the channels (`kvik/runners/balance.py`) and quantize every matrix (`quantized.py`). Weights that are
    quantized in the checkpoint keep the values they have there.
    group_size: inputs that share an int4 scale, 32, 64 or 128. symmetric: without a zero point of their own.
    kv_dtype: auto and f32 hold float32; bf16 rounds; int8 quantizes each token's key and value, head by head.
    Raises ConfigError for any other form.
    """

    def __init__(
        self,
        options: RunnerOptions,
        *,
        weights: str = "auto",
        kv_dtype: str = "auto",
        group_size: int = GROUP,
        symmetric: bool = False,
    ) -> None:
        for name, value in (("weights", weights), ("kv_dtype", kv_dtype)):
            if value not in FORMS[name]:
                raise ConfigError(f"{name} is {value!r}; the reference runner holds one of {', '.join(FORMS[name])}")
        self._options = options
        self._weights, self._group_size, self._symmetric = weights, group_size, symmetric
        self._kv_form = "f32" if kv_dtype == "auto" else kv_dtype
        self._weight_bytes = 0
        self._decoder: Decoder | None = None
        self._cache: KVCache | None = None

    @property
    def name(self) -> str:
        return "reference"

    @property
    def vocab_size(self) -> int:
        return self._loaded().spec.vocab_size

    def load(self, checkpoint: Checkpoint) -> None:
        """Take every weight as float32. Raises CheckpointError, NotEnoughMemoryError."""
        spec = checkpoint.spec
        require_memory(spec.num_parameters() * 4, f"the float32 weights of {checkpoint.name}", "use a smaller model")
        form = weight_form(self._weights, spec.dtype)
        source = balanced(checkpoint, form)
        weights: dict[str, Float32] = {}
        for name in spec.tensor_shapes():
            tensor = source.tensor(name)
            as_stored = isinstance(tensor, QuantizedTensor) or tensor.dtype == form
            weights[name] = tensor.float32() if as_stored else self._kept(tensor.float32(), form)
            source.release(name)
        self._decoder, self._cache = Decoder(spec, weights), None
        self._weight_bytes = sum(w.nbytes for w in weights.values())

    def _kept(self, values: Float32, form: str) -> Float32:
        return kept_weight(values, form, self._group_size, symmetric=self._symmetric)

    def kv_bytes_per_token(self) -> int:
        spec = self._loaded().spec
        return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * 4

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Reserve blocks 0 .. num_blocks - 1, zeroed. Raises NotEnoughMemoryError."""
        spec = self._loaded().spec
        needed = num_blocks * block_size * self.kv_bytes_per_token()
        require_memory(needed, f"{num_blocks} KV blocks of {block_size} tokens", "lower kv_cache_memory")
        self._cache = KVCache(
            spec.num_layers, num_blocks, block_size, spec.num_kv_heads, spec.head_dim, form=self._kv_form
        )

    def run(self, plan: StepPlan) -> StepResult:
        """Copy blocks, compute every row, then draw and score. NaN or infinity fails the draws of its row alone."""
        decoder = self._loaded()
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            hidden = self._forward(plan)
            last = np.zeros((plan.num_rows, self.vocab_size), np.float32)
            drawn = np.unique(plan.sample.rows)
            last[drawn] = decoder.logits(hidden[plan.query_start_loc[drawn + 1] - 1])
            token_ids, failed, sampled = sampling.draw(plan.sample, last)
            scored = sampling.score(plan.score, decoder.logits(hidden[plan.score.indices]))
        return StepResult(token_ids=token_ids, failed=failed, sampled=sampled, scored=scored)

    def logits(self, plan: StepPlan) -> Float32:
        """Logits after every token of the plan, float32 [T, vocab_size]."""
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            return self._loaded().logits(self._forward(plan))

    def memory(self) -> MemoryUse:
        """Nothing but weights and KV outlives a step."""
        return MemoryUse(weights=self._weight_bytes, kv=self._cache.nbytes if self._cache else 0, activations=0)

    def kernels(self) -> KernelChoice:
        return KernelChoice(chosen="reference: numpy float32")

    def close(self) -> None:
        self._decoder = self._cache = None
        self._weight_bytes = 0

    def _forward(self, plan: StepPlan) -> Float32:
        """Residuals of all tokens after the final norm, [T, hidden_size]."""
        decoder, cache = self._loaded(), self._allocated()
        check_token_ids(plan, decoder.spec.vocab_size)
        cache.copy_blocks(plan.copies)
        hidden = np.empty((plan.num_tokens, decoder.spec.hidden_size), np.float32)
        for row in range(plan.num_rows):
            tokens = slice(plan.query_start_loc[row], plan.query_start_loc[row + 1])
            hidden[tokens] = self._row(plan, row, tokens)
        return hidden

    def _row(self, plan: StepPlan, row: int, tokens: slice) -> Float32:
        decoder, cache = self._loaded(), self._allocated()
        positions = plan.positions[tokens]
        slots = cache.slots(plan.block_tables[row], int(plan.seq_lens[row]))

        def store_and_attend(layer: int, q: Float32, k: Float32, v: Float32) -> Float32:
            cache.write(layer, slots[positions], k, v)
            keys, values = cache.read(layer, slots)
            return attend(q, keys, values, positions, decoder.spec.window(layer))

        return decoder.hidden(plan.token_ids[tokens], positions, store_and_attend)

    def _loaded(self) -> Decoder:
        if self._decoder is None:
            raise RuntimeError("the reference runner has no model; call load first")
        return self._decoder

    def _allocated(self) -> KVCache:
        if self._cache is None:
            raise RuntimeError("the reference runner has no KV cache; call allocate first")
        return self._cache


def check_token_ids(plan: StepPlan, vocab_size: int) -> None:
    """Raises ValueError for a token id outside the vocabulary, which numpy would read from its end."""
    wrong = plan.token_ids[(plan.token_ids < 0) | (plan.token_ids >= vocab_size)]
    if wrong.size:
        raise ValueError(f"the plan holds token id {wrong[0]}; expected 0 to {vocab_size - 1}")


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Raises NotEnoughMemoryError when this machine could never hold that many bytes."""
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > present:
        raise NotEnoughMemoryError(
            f"{what} need {needed / 2**30:.1f} GiB; this machine has {present / 2**30:.1f} GiB: {remedy}"
        )
