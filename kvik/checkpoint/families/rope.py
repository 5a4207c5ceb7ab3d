"""Rotary embedding in config.json: read into a RopeSpec, and written back.

Two spellings are met: `rope_theta` beside a `rope_scaling` object, and the newer `rope_parameters` object that holds
both. Where both are given `rope_scaling` wins, as in transformers 5. Defaults are those of its modeling_rope_utils.
This file knows nothing of families.
"""

from __future__ import annotations

import math
from typing import Any

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.spec import RopeSpec

KINDS = ("default", "linear", "llama3", "yarn")
_BIG = 1e9
_LONGEST = 2**31 - 1


def read_rope(fields: Fields) -> RopeSpec:
    """The rotary embedding of a config. Raises CheckpointError, UnsupportedModelError."""
    table = fields.table("rope_scaling") or fields.table("rope_parameters")
    if table is None:
        return RopeSpec(theta=_theta(fields))
    kind = _kind(table)
    theta = _theta(table if "rope_theta" in table else fields)
    if kind == "linear":
        return RopeSpec(theta, kind, factor=table.number("factor", 0, _BIG))
    if kind == "llama3":
        return _read_llama3(fields, table, theta)
    if kind == "yarn":
        return _read_yarn(fields, table, theta)
    return RopeSpec(theta)


def _theta(fields: Fields) -> float:
    return fields.number("rope_theta", 1, 1e15, 10000.0)


def _kind(table: Fields) -> str:
    """The kind of stretching, once everything that is not done is refused."""
    for name in table.values:
        if isinstance(table.get(name), dict):
            raise table.unsupported(name, "one rotary embedding for all layers")
    if table.get("mrope_section") is not None:
        raise table.unsupported("mrope_section", "one-dimensional positions")
    if table.get("partial_rotary_factor") not in (None, 1):
        raise table.unsupported("partial_rotary_factor", "1 (all of a head is rotated)")
    name = "rope_type" if "rope_type" in table else "type"
    kind = table.get(name) if name in table else "default"
    if not isinstance(kind, str):
        raise table.wrong(name, f"one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise table.unsupported(name, ", ".join(KINDS))
    return kind


def _original(fields: Fields, table: Fields) -> int:
    """Context length before stretching: beside the object, in it, or the model's own."""
    name = "original_max_position_embeddings"
    if name in fields:
        return fields.whole(name, 1, _LONGEST)
    if name in table:
        return table.whole(name, 1, _LONGEST)
    return fields.whole("max_position_embeddings", 1, _LONGEST)


def _read_llama3(fields: Fields, table: Fields, theta: float) -> RopeSpec:
    low = table.number("low_freq_factor", 0, _BIG)
    high = table.number("high_freq_factor", 0, _BIG)
    if high <= low:
        raise table.wrong("high_freq_factor", f"more than low_freq_factor, which is {low:g}")
    return RopeSpec(
        theta,
        "llama3",
        factor=table.number("factor", 0, _BIG),
        original_max_position=_original(fields, table),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _read_yarn(fields: Fields, table: Fields, theta: float) -> RopeSpec:
    original = _original(fields, table)
    if "factor" in table and table.get("factor") is None:
        factor = fields.whole("max_position_embeddings", 1, _LONGEST) / original
    else:
        factor = table.number("factor", 0, _BIG)
    return RopeSpec(
        theta,
        "yarn",
        factor=factor,
        original_max_position=original,
        beta_fast=_or_default(table, "beta_fast", 32.0),
        beta_slow=_or_default(table, "beta_slow", 1.0),
        truncate=table.flag("truncate", True),
        attention_factor=_attention_factor(table, factor),
    )


def _or_default(table: Fields, name: str, default: float) -> float:
    """A positive number; null and 0 mean the default here."""
    return table.number(name, 0, _BIG) if table.get(name) not in (None, 0) else default


def _attention_factor(table: Fields, factor: float) -> float:
    """Given, or from mscale and mscale_all_dim where both are set, or 0.1 ln(factor) + 1 (YaRN, equation 22)."""
    if table.get("attention_factor") is not None:
        return table.number("attention_factor", 0, _BIG)
    mscale, all_dim = _or_default(table, "mscale", 0.0), _or_default(table, "mscale_all_dim", 0.0)
    if mscale and all_dim:
        return _mscale(factor, mscale) / _mscale(factor, all_dim)
    return _mscale(factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def write_rope(rope: RopeSpec) -> dict[str, Any]:
    """The config fields that `read_rope` reads back to this spec; the older spelling, which every version reads."""
    scaling: dict[str, Any] | None = None
    if rope.kind != "default":
        scaling = {"rope_type": rope.kind, "factor": rope.factor}
    if scaling and rope.kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = rope.original_max_position
    if scaling and rope.kind == "llama3":
        scaling |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if scaling and rope.kind == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        scaling["attention_factor"] = rope.attention_factor
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
