"""`quantization_config` of a config.json: which layout a model's quantized weights have.

One table from `quant_method` to the file that knows it. What a config asks for and no layout does is refused by name
and value before any weight is read. This file knows nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Callable

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.formats.awq import read_awq
from kvik.checkpoint.formats.compressed import read_compressed
from kvik.checkpoint.formats.gptq import read_gptq
from kvik.checkpoint.formats.layout import Layout

METHODS: dict[str, Callable[[Fields], Layout]] = {
    "gptq": read_gptq,
    "awq": read_awq,
    "compressed-tensors": read_compressed,
}
"""Readers by `quant_method`."""


def read_layout(fields: Fields) -> Layout | None:
    """The layout of the quantized weights; None where all are plain. Raises UnsupportedModelError, CheckpointError."""
    config = fields.table("quantization_config")
    if config is None:
        return None
    method = config.get("quant_method")
    if not isinstance(method, str) or method not in METHODS:
        raise config.unsupported("quant_method", ", ".join(METHODS))
    return METHODS[method](config)
