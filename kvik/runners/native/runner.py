"""NativeRunner: the model on a CPU through the C++ library, one call per step.

Owns a model inside the library: packed weights, KV arena, threads. What is fast about it is in csrc/; this file checks
what goes in and says what was chosen. It knows nothing of requests or text.
"""

from __future__ import annotations

import ctypes as c
from dataclasses import replace
from typing import Any

import numpy as np

from kvik.checkpoint.checkpoint import Checkpoint, Tensor
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.spec import DecoderSpec
from kvik.config import RunnerOptions
from kvik.errors import BackendError, NotEnoughMemoryError
from kvik.runners.balance import balanced
from kvik.runners.forms import GROUP
from kvik.runners.native.library import FORMS, ROLES, SpecStruct, address, as_contiguous, call, load_library
from kvik.runners.native.machine import available, best_isa, cores
from kvik.runners.native.marshal import Answer, plan_struct
from kvik.runners.native.quantized import PackedArrays
from kvik.runners.placement import place
from kvik.runners.runner import KernelChoice, MemoryUse, kv_form, weight_form
from kvik.step import Float32, StepPlan, StepResult

Weight = Tensor | QuantizedTensor


class NativeRunner:
    """The Runner protocol on a CPU. Raises BackendError if the library or the instruction set cannot serve."""

    name = "native"

    def __init__(
        self,
        options: RunnerOptions,
        *,
        weights: str = "auto",
        kv_dtype: str = "auto",
        group_size: int = GROUP,
        symmetric: bool = False,
    ) -> None:
        self._library = load_library()
        self._options, self._weights, self._kv_dtype = options, weights, kv_dtype
        self._group_size, self._symmetric = group_size, symmetric
        self._isa = best_isa() if options.isa == "auto" else options.isa
        refusal = available().get(self._isa, "this build does not have it")
        if refusal is not None:
            raise BackendError(f"isa is {self._isa!r}, which cannot run here: {refusal}")
        self._model: int | None = None
        self._spec: DecoderSpec | None = None
        self._kv_bytes = 0

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size

    @property
    def spec(self) -> DecoderSpec:
        """The loaded model's. Raises BackendError before `load`."""
        if self._spec is None:
            raise BackendError("no model is loaded")
        return self._spec

    def load(self, checkpoint: Checkpoint) -> None:
        """Pack every tensor straight from the checkpoint's map: those that are quantized already as they are, others
        in the form the options ask for, quantized ones from the balanced model's. Raises CheckpointError,
        NotEnoughMemoryError.
        """
        self.close()
        spec = checkpoint.spec
        form = weight_form(self._weights, spec.dtype)
        self._model = self._create(spec, form, kv_form(self._kv_dtype, form))
        self._spec = spec
        source = balanced(checkpoint, form)
        held: dict[str, Weight] = {}
        for name in spec.tensor_shapes():
            held[name] = source.tensor(name)
            if name.endswith(".gate"):
                continue  # Whether it goes together with up is seen beside it.
            suffix = "" if are_alike(*held.values()) else "_alone"
            for each in list(held):
                self._load_weight(each + suffix, held.pop(each))
                source.release(each)

    def _load_weight(self, name: str, weight: Weight) -> None:
        prefix, _, role = name.rpartition(".")
        place_in_model = (self._model, ROLES.index(role), int(prefix.split(".")[1]) if prefix else -1)
        if isinstance(weight, QuantizedTensor):
            arrays = PackedArrays(weight, place(weight))
            with_memory(self._library.kvik_load_quantized, *place_in_model, c.byref(arrays.struct))
            return
        data = as_contiguous(weight.data)
        rows, columns = data.shape if data.ndim == 2 else (1, data.shape[0])
        with_memory(self._library.kvik_load, *place_in_model, address(data), FORMS[weight.dtype], rows, columns)

    def _create(self, spec: DecoderSpec, form: str, kv: str) -> int:
        inv_freq = spec.rope.inv_freq(spec.head_dim)
        windows = np.array([spec.window(layer) for layer in range(spec.num_layers)], np.int32)
        struct: Any = SpecStruct()
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            setattr(struct, name, getattr(spec, name))
        for name in ("head_dim", "qkv_bias", "o_bias", "qk_norm", "tied_head", "rms_norm_eps"):
            setattr(struct, name, getattr(spec, name))
        struct.weight_form, struct.kv_form = FORMS[form], FORMS[kv]
        struct.naive_attention = self._options.attention == "naive"
        struct.threads = self._options.threads or cores()
        struct.weight_group, struct.weight_symmetric = self._group_size, self._symmetric
        struct.rope_attention_factor = spec.rope.attention_factor
        struct.inv_freq, struct.windows = address(inv_freq), address(windows)
        return int(with_memory(self._library.kvik_create, c.byref(struct), self._isa.encode()))

    def kv_bytes_per_token(self) -> int:
        return int(self._library.kvik_kv_bytes_per_token(self._loaded()))

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Reserve the KV arena. Raises NotEnoughMemoryError, BackendError for a block size it cannot lay out."""
        try:
            call(self._library.kvik_allocate, self._loaded(), num_blocks, block_size)
        except BackendError as error:
            if "no memory" in str(error):
                raise NotEnoughMemoryError(f"{error}; lower kv_cache_memory or max_num_seqs") from None
            raise
        self._kv_bytes = num_blocks * block_size * self.kv_bytes_per_token()

    def run(self, plan: StepPlan) -> StepResult:
        answer = Answer(plan)
        self._step(plan, answer)
        return answer.result()

    def logits(self, plan: StepPlan) -> Float32:
        logits = np.zeros((plan.num_tokens, self.vocab_size), np.float32)
        self._step(plan, Answer(plan, logits))
        return logits

    def _step(self, plan: StepPlan, answer: Answer) -> None:
        struct = plan_struct(plan)
        call(self._library.kvik_step, self._loaded(), c.byref(struct), answer.pointer())

    def memory(self) -> MemoryUse:
        model = self._loaded()
        return MemoryUse(
            int(self._library.kvik_weight_bytes(model)), self._kv_bytes, int(self._library.kvik_activation_bytes(model))
        )

    def kernels(self) -> KernelChoice:
        refused = {name: why for name, why in available().items() if why is not None}
        return KernelChoice(self._isa, refused)

    def close(self) -> None:
        if self._model is not None:
            self._library.kvik_free(self._model)
        self._model, self._spec, self._kv_bytes = None, None, 0

    def _loaded(self) -> int:
        if self._model is None:
            raise BackendError("no model is loaded")
        return self._model

    def __del__(self) -> None:
        if getattr(self, "_model", None) is not None:
            self.close()


def are_alike(*weights: Weight) -> bool:
    """Whether they can be interleaved in one matrix: in form, groups and order of inputs."""
    return all(_can_join(weights[0], other) for other in weights[1:])


def _can_join(one: Weight, other: Weight) -> bool:
    if not isinstance(one, QuantizedTensor) or not isinstance(other, QuantizedTensor):
        return isinstance(one, QuantizedTensor) == isinstance(other, QuantizedTensor)
    same_form = replace(place(one), has_units=False) == replace(place(other), has_units=False)
    if one.order is None or other.order is None:
        return same_form and one.order is other.order
    return same_form and np.array_equal(one.order, other.order)


def with_memory(function: Any, *arguments: Any) -> Any:
    """Call a function that takes weights in. Raises NotEnoughMemoryError, BackendError."""
    try:
        return call(function, *arguments)
    except BackendError as error:
        if "no memory" in str(error):
            raise NotEnoughMemoryError(f"{error}; a smaller model or fewer bits would fit") from None
        raise
