"""Drives llama.cpp through its low-level interface: all sequences in one llama_decode, continuous batching.

A step is one batch: the next token of every request that decodes, and as many prompt tokens as still fit, which is what
llama.cpp's own server does. Settings: flash attention with f16 keys and values (quantized ones leave its tiled path), a
KV stream for every sequence, all cores for prompts and for answers. The largest logit is found by numpy, which costs
less than llama.cpp's sampler chain.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from protocol import Given, Message, Run, closed_loop, serve, usable_cores

TOKENS_PER_STEP = 2048
TOKENS_PER_GRAPH = 512
"""llama.cpp's own defaults: a batch, and the part of it that is computed at once."""


@dataclass
class Slot:
    """A place for one sequence."""

    index: int
    tokens: list[int]
    """The prompt and the answer so far."""
    total: int
    computed: int = 0


class LlamaCpp:
    """A GGUF file, and a context as large as a run needs."""

    def __init__(self) -> None:
        self._model: Any = None
        self._context: Any = None
        self._shape = (0, 0)
        self._slots: dict[int, Slot] = {}

    def load(self, asked: Message) -> Message:
        """Load a GGUF file."""
        import llama_cpp

        self._lib, self._threads = llama_cpp, len(usable_cores(asked["threads"]))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            asked["model"].encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise OSError(f"{asked['model']} cannot be loaded; the log says why")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(TOKENS_PER_STEP, 0, 1)
        return {
            "versions": {"llama-cpp-python": llama_cpp.__version__},
            "settings": {
                "threads": self._threads,
                "flash_attention": True,
                "kv": "f16",
                "n_batch": TOKENS_PER_STEP,
                "n_ubatch": TOKENS_PER_GRAPH,
                "system_info": llama_cpp.llama_print_system_info().decode(),
            },
        }

    def run(self, prompts: list[list[int]], output_lens: list[int], concurrency: int) -> Run:
        """All prompts, with room made before the clock starts."""
        longest = max(len(prompt) + asked for prompt, asked in zip(prompts, output_lens, strict=True))
        self._make_room(min(concurrency, len(prompts)), longest)
        return closed_loop(prompts, output_lens, concurrency, self._add, self._step)

    def _make_room(self, sequences: int, length: int) -> None:
        """An empty context for so many sequences of such a length."""
        lib, shape = self._lib, (sequences, -(-length // 256) * 256)
        self._slots.clear()
        if shape != self._shape:
            if self._context:
                lib.llama_free(self._context)
                self._context = None
            params = lib.llama_context_default_params()
            params.n_ctx, params.n_seq_max = shape[0] * shape[1], shape[0]
            params.n_batch, params.n_ubatch = TOKENS_PER_STEP, TOKENS_PER_GRAPH
            params.n_threads = params.n_threads_batch = self._threads
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
            params.kv_unified, params.no_perf = False, True
            self._context, self._shape = lib.llama_init_from_model(self._model, params), shape
            if not self._context:
                self._shape = (0, 0)
                raise MemoryError(f"no context of {shape[0]} sequences of {shape[1]} tokens; the log says why")
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)

    def _add(self, index: int, prompt: list[int], output_len: int) -> None:
        place = next(place for place in range(self._shape[0]) if place not in self._slots)
        self._slots[place] = Slot(index, list(prompt), len(prompt) + output_len)

    def _step(self) -> list[Given]:
        """One llama_decode. Decodes come first, then prompts in the order they came."""
        drawn = self._fill_batch()
        status = self._lib.llama_decode(self._context, self._batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return [self._draw(place, row) for place, row in drawn]

    def _fill_batch(self) -> list[tuple[int, int]]:
        """Put tokens into the batch; returns (place, row of the batch) of every token that is drawn from."""
        batch, drawn = self._batch, []
        batch.n_tokens = 0
        order = sorted(self._slots.items(), key=lambda item: len(item[1].tokens) - item[1].computed > 1)
        for place, slot in order:
            take = min(len(slot.tokens) - slot.computed, TOKENS_PER_STEP - batch.n_tokens)
            for position in range(slot.computed, slot.computed + take):
                row = batch.n_tokens
                batch.token[row], batch.pos[row] = slot.tokens[position], position
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, place
                batch.logits[row] = position + 1 == len(slot.tokens)
                batch.n_tokens += 1
            slot.computed += take
            if take and slot.computed == len(slot.tokens):
                drawn.append((place, batch.n_tokens - 1))
        return drawn

    def _draw(self, place: int, row: int) -> Given:
        slot = self._slots[place]
        logits = self._lib.llama_get_logits_ith(self._context, row)
        address = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        token_id = int(np.ctypeslib.as_array(address, (self._vocab_size,)).argmax())
        slot.tokens.append(token_id)
        ended = len(slot.tokens) == slot.total
        if ended:
            del self._slots[place]
            self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self._context), place, -1, -1)
        return slot.index, [token_id], ended


if __name__ == "__main__":
    serve(LlamaCpp())
