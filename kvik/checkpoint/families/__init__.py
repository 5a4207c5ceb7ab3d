"""The model families: one file each, found by the names that config.json gives them.

A new family is a new file and a line in `FAMILIES`. What Kvik cannot compute is refused here, by name, before any
weight is read. This room knows nothing of weights.
"""

from __future__ import annotations

from kvik.checkpoint.families.decoder import Family
from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.families.llama import LLAMA
from kvik.checkpoint.families.mistral import MISTRAL
from kvik.checkpoint.families.qwen2 import QWEN2
from kvik.checkpoint.families.qwen3 import QWEN3
from kvik.checkpoint.families.refuse import check_supported
from kvik.checkpoint.spec import DecoderSpec

FAMILIES = {family.name: family for family in (QWEN3, QWEN2, LLAMA, MISTRAL)}
"""Families by `model_type`."""


def find_family(fields: Fields) -> Family:
    """The family a config names. Raises UnsupportedModelError listing the supported ones."""
    by_architecture = {family.architecture: family for family in FAMILIES.values()}
    architectures = fields.strings("architectures")
    if architectures and architectures[0] not in by_architecture:
        raise fields.unsupported("architectures", ", ".join(by_architecture))
    if architectures and len(architectures) > 1:
        raise fields.unsupported("architectures", "one architecture")
    model_type = fields.get("model_type")
    if model_type is None and not architectures:
        raise fields.wrong("model_type", f"one of {', '.join(FAMILIES)}")
    if model_type is not None and (not isinstance(model_type, str) or model_type not in FAMILIES):
        raise fields.unsupported("model_type", ", ".join(FAMILIES))
    family = by_architecture[architectures[0]] if architectures else FAMILIES[str(model_type)]
    if model_type not in (None, family.name):
        raise fields.wrong("model_type", f"{family.name!r}, because architectures is {family.architecture}")
    return family


def read_spec(fields: Fields) -> DecoderSpec:
    """What a config describes; `dtype` is left for the weights to tell.

    Raises CheckpointError, UnsupportedModelError.
    """
    family = find_family(fields)
    check_supported(fields)
    return family.read(fields)
