"""The shared library of the native runner, found, loaded and described to ctypes.

Structures and enumerations mirror csrc/kvik.h field by field. ctypes releases the GIL for the length of a call. This
file knows how to call C and nothing of what is computed.
"""

from __future__ import annotations

import ctypes as c
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.errors import BackendError

ABI = 5
FORMS = {"bf16": 0, "f32": 1, "f16": 2, "int8": 3, "int4": 4, "bytes": 5, "k4": 6, "k6": 7}
ROLES = (
    "embed",
    "final_norm",
    "head",
    "attn_norm",
    "q",
    "k",
    "v",
    "o",
    "q_bias",
    "k_bias",
    "v_bias",
    "o_bias",
    "q_norm",
    "k_norm",
    "mlp_norm",
    "gate",
    "up",
    "down",
    "gate_alone",
    "up_alone",
)
"""Canonical tensor names without their layer, in the order of enum KvikRole; the last two for gate and up that do not
go together.
"""


def _structure(name: str, *fields: tuple[str, Any]) -> type[c.Structure]:
    return type(name, (c.Structure,), {"_fields_": list(fields)})


def _int32s(*names: str) -> list[tuple[str, Any]]:
    return [(name, c.c_int32) for name in names]


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, c.c_void_p) for name in names]


SpecStruct = _structure(
    "SpecStruct",
    *_int32s("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    *_int32s("qkv_bias", "o_bias", "qk_norm", "tied_head", "weight_form", "kv_form", "naive_attention", "threads"),
    *_int32s("weight_group", "weight_symmetric"),
    ("rms_norm_eps", c.c_float),
    ("rope_attention_factor", c.c_float),
    *_pointers("inv_freq", "windows"),
)
QuantizedStruct = _structure(
    "QuantizedStruct",
    *_int32s("form", "group"),
    ("rows", c.c_int64),
    ("columns", c.c_int64),
    *_pointers("levels", "scales", "zeros", "units", "factors", "min_factors", "order"),
)
SAMPLE_ARRAYS = (
    "rows",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seeds",
    "positions",
    "num_logprobs",
    "bias_start",
    "bias_tokens",
    "bias_values",
    "history_start",
    "history_tokens",
    "history_prompt",
)
MASK_ARRAYS = ("mask_index", "masks")
SCORE_ARRAYS = ("indices", "targets", "num_top")
PLAN_ARRAYS = ("token_ids", "positions", "query_start_loc", "seq_lens", "block_tables", "copies")
SampleStruct = _structure(
    "SampleStruct",
    *_int32s("num_draws"),
    *_pointers(*SAMPLE_ARRAYS),
    *_int32s("num_masks", "mask_words"),
    *_pointers(*MASK_ARRAYS),
)
ScoreStruct = _structure("ScoreStruct", *_int32s("num_scores"), *_pointers(*SCORE_ARRAYS))
PlanStruct = _structure(
    "PlanStruct",
    *_int32s("num_rows", "num_tokens", "num_copies", "table_width"),
    *_pointers(*PLAN_ARRAYS),
    ("sample", SampleStruct),
    ("score", ScoreStruct),
)
TopStruct = _structure("TopStruct", *_int32s("width"), *_pointers("logprobs", "top_ids", "top_logprobs"))
ResultStruct = _structure(
    "ResultStruct",
    *_pointers("token_ids", "failed"),
    ("sampled", TopStruct),
    ("scored", TopStruct),
    *_pointers("logits"),
)


def address(array: NDArray[Any]) -> int:
    """Where an array's data lies. The caller keeps the array alive and contiguous."""
    return int(array.ctypes.data)


def fill(struct: Any, names: tuple[str, ...], source: Any) -> None:
    """Point the struct's fields at the arrays of the same names."""
    for name in names:
        # __array_interface__ costs a third of what .ctypes.data does, and a plan has 26 arrays.
        setattr(struct, name, getattr(source, name).__array_interface__["data"][0])


_TAIL = [c.c_char_p, c.c_int32]
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "kvik_abi": (c.c_int32, []),
    "kvik_isa_count": (c.c_int32, []),
    "kvik_isa_name": (c.c_char_p, [c.c_int32]),
    "kvik_isa_refusal": (c.c_char_p, [c.c_int32]),
    "kvik_create": (c.c_void_p, [c.c_void_p, c.c_char_p, *_TAIL]),
    "kvik_free": (None, [c.c_void_p]),
    "kvik_load": (
        c.c_int32,
        [c.c_void_p, c.c_int32, c.c_int32, c.c_void_p, c.c_int32, c.c_int64, c.c_int64, *_TAIL],
    ),
    "kvik_load_quantized": (c.c_int32, [c.c_void_p, c.c_int32, c.c_int32, c.c_void_p, *_TAIL]),
    "kvik_allocate": (c.c_int32, [c.c_void_p, c.c_int32, c.c_int32, *_TAIL]),
    "kvik_step": (c.c_int32, [c.c_void_p, c.c_void_p, c.c_void_p, *_TAIL]),
    "kvik_weight_bytes": (c.c_int64, [c.c_void_p]),
    "kvik_kv_bytes_per_token": (c.c_int64, [c.c_void_p]),
    "kvik_activation_bytes": (c.c_int64, [c.c_void_p]),
    "kvik_draw": (c.c_int32, [c.c_char_p, c.c_void_p, c.c_void_p, c.c_int32, c.c_void_p, *_TAIL]),
    "kvik_read_bandwidth": (c.c_double, [c.c_int32, c.c_int64, c.c_double]),
    "kvik_matrix_peak": (c.c_double, [c.c_char_p, c.c_int32, c.c_int32, c.c_double]),
}


@cache
def load_library() -> c.CDLL:
    """The library that was built with this package. Raises BackendError if there is none or it does not match."""
    path = Path(__file__).with_name("libkvik_native.so")
    try:
        library = c.CDLL(str(path))
    except OSError as error:
        reason = "it was not built (no C++ compiler at install time?)" if not path.exists() else str(error)
        raise BackendError(f"the native runner cannot be loaded: {reason}") from None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.kvik_abi() != ABI:
        raise BackendError(f"{path.name} has interface {library.kvik_abi()}; expected {ABI}; reinstall kvik")
    return library


def call(function: Any, *arguments: Any) -> Any:
    """Call a function that ends in (error, error_size). Raises BackendError with its message if it failed."""
    message = c.create_string_buffer(512)
    result = function(*arguments, message, len(message))
    if message.value:
        raise BackendError(message.value.decode(errors="replace"))
    return result


def as_contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself if it is row-major and aligned already, else a copy (a map's tensors can lie anywhere)."""
    return np.require(array, requirements=["C", "A"])
