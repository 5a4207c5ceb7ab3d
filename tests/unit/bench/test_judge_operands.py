"""Operands of a comparison: models with options after an @."""

from __future__ import annotations

import pytest

from kvik.bench.judge_operands import parse_operand, parse_operands
from kvik.config import EngineConfig
from kvik.errors import ConfigError


def test_options_after_the_at_go_before_those_of_the_command_line() -> None:
    base = {"weights": "int8", "threads": 1}
    found = parse_operand("path/to/model@weights=int4,kv-dtype=int8,prefix_caching=off,kv_cache_memory=16MiB", base)
    assert found == EngineConfig.from_options(
        model="path/to/model", weights="int4", kv_dtype="int8", prefix_caching=False, kv_cache_memory=2**24, threads=1
    )


@pytest.mark.parametrize("text", ["box", "", "@weights=int4", "box@weights=int4"])
def test_box_or_nothing_is_the_model_in_the_box(text: str) -> None:
    assert parse_operand(text, {}).model.model is None
    assert parse_operand(text, {}).model.weights == ("int4" if "@" in text else "auto")


@pytest.mark.parametrize(
    ("text", "model", "threads"),
    [
        ("org/name@revision", "org/name@revision", None),
        ("org/name@revision@threads=2", "org/name@revision", 2),
        ("odd@name", "odd@name", None),
        ("C:\\models\\a", "C:\\models\\a", None),
    ],
)
def test_an_at_without_an_equals_sign_belongs_to_the_model(text: str, model: str, threads: int | None) -> None:
    found = parse_operand(text, {})
    assert (found.model.model, found.runner.threads) == (model, threads)


def test_what_is_given_twice_is_numbered() -> None:
    labels = [operand.label for operand in parse_operands(["a", "b", "a", ""], {})]
    assert labels == ["a #1", "b", "a #2", "box"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a@weight=int4", "a@weight=int4: no option 'weight'; expected one of weights, "),
        ("a@model=b", "no option 'model'"),
        ("a@weights=int5", "weights is 'int5'; expected one of auto"),
        ("a@threads=two", "threads is 'two'; expected a whole number"),
        ("a@threads=0", "threads is 0; expected a whole number of at least 1"),
        ("a@enforce_eager=maybe", "enforce_eager is 'maybe'; expected true or false"),
        ("a@kv_cache_memory=much", "'much' is not a size"),
    ],
)
def test_a_bad_option_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_operand(text, {})
    assert said in str(refused.value)


def test_one_model_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="1 model is given; expected a reference"):
        parse_operands(["a"], {})
