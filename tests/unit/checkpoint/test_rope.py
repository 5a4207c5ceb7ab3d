"""Rotary embedding in configs: both spellings, every kind, and the senseless refused."""

from __future__ import annotations

from typing import Any

import pytest

from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.families.rope import read_rope, write_rope
from kvik.checkpoint.spec import RopeSpec
from kvik.errors import CheckpointError


def read(**values: Any) -> RopeSpec:
    return read_rope(Fields("config.json", {"max_position_embeddings": 4096, **values}))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}


def test_theta_stands_beside_or_within_and_defaults_to_ten_thousand() -> None:
    assert read() == RopeSpec(10000.0)
    assert read(rope_theta=5e5, rope_scaling=None) == RopeSpec(5e5)
    assert read(rope_parameters={"rope_theta": 7e5, "rope_type": "default"}) == RopeSpec(7e5)
    assert read(rope_theta=5e5, rope_parameters={"rope_theta": 7e5}) == RopeSpec(7e5)
    assert read(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2}) == RopeSpec(5e5, "linear", factor=2.0)


def test_rope_scaling_goes_before_rope_parameters() -> None:
    both = read(rope_scaling={"type": "linear", "factor": 2}, rope_parameters={"rope_type": "linear", "factor": 3})
    assert both.factor == 2


def test_the_length_before_stretching_is_beside_within_or_the_model_s_own() -> None:
    assert read(rope_scaling=LLAMA3).original_max_position == 4096
    assert read(rope_scaling={**LLAMA3, "original_max_position_embeddings": 99}).original_max_position == 99
    assert read(rope_scaling=YARN, original_max_position_embeddings=77).original_max_position == 77


def test_a_null_yarn_factor_is_the_ratio_of_lengths() -> None:
    assert read(rope_scaling={**YARN, "factor": None}).factor == 2.0


def test_null_and_zero_betas_mean_their_defaults() -> None:
    spec = read(rope_scaling={**YARN, "beta_fast": None, "beta_slow": 0})
    assert (spec.beta_fast, spec.beta_slow) == (32.0, 1.0)


@pytest.mark.parametrize(
    "rope",
    [
        RopeSpec(1e6),
        RopeSpec(1e4, "linear", factor=2.5),
        RopeSpec(5e5, "llama3", factor=8.0, original_max_position=64, low_freq_factor=1.5, high_freq_factor=3.0),
        RopeSpec(1e6, "yarn", 4.0, 512, beta_fast=16.0, beta_slow=2.0, truncate=False, attention_factor=1.25),
    ],
)
def test_what_is_written_reads_back_the_same(rope: RopeSpec) -> None:
    assert read(**write_rope(rope)) == rope


@pytest.mark.parametrize(
    ("field", "scaling"),
    [
        ("rope_type", {"rope_type": None, "type": "linear"}),
        ("type", {"type": 3}),
        *(("factor", {"type": "linear", "factor": factor}) for factor in (0, -1, "2", None, float("nan"), True)),
        ("factor", {"type": "linear"}),
        ("factor", {"type": "yarn"}),
        ("low_freq_factor", {**LLAMA3, "low_freq_factor": 0}),
        ("high_freq_factor", {**LLAMA3, "high_freq_factor": 1.0}),
        ("original_max_position_embeddings", {**LLAMA3, "original_max_position_embeddings": 0}),
        ("original_max_position_embeddings", {**YARN, "original_max_position_embeddings": "2048"}),
        ("beta_fast", {**YARN, "beta_fast": -1}),
        ("truncate", {**YARN, "truncate": "yes"}),
        ("attention_factor", {**YARN, "attention_factor": 0}),
        ("mscale", {**YARN, "mscale": "a"}),
        ("rope_theta", {**YARN, "rope_theta": 0}),
    ],
)
def test_a_senseless_field_is_named_with_its_object(field: str, scaling: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"config.json: rope_scaling\.{field} is .*; expected "):
        read(rope_scaling=scaling)


def test_frequencies_fall_and_stretching_never_raises_them() -> None:
    plain = read().inv_freq(64)
    for scaling in (LLAMA3, YARN, {"type": "linear", "factor": 2}):
        stretched = read(rope_scaling=scaling).inv_freq(64)
        assert (stretched[1:] < stretched[:-1]).all()
        assert (stretched <= plain * 1.000001).all()
        assert stretched[-1] < plain[-1] * 0.6
