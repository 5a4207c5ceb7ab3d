"""What `kvik eval compare` is given to compare: a model, and after an @ the options that it is to be held with.

    MODEL                                the options of the command line
    MODEL@weights=int4,kv_dtype=int8     those, but for these

MODEL is what every command takes, and `box` or nothing for the model in the box. A revision of a hub id keeps its own
@, as options have an =. This file knows nothing of models or of measuring.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvik.config import CONCERNS, EngineConfig, parse_size
from kvik.errors import ConfigError

BOX = "box"
SPELLINGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Operand:
    """One side of a comparison; `label` names it in tables, each by another."""

    label: str
    config: EngineConfig


def parse_operands(texts: Sequence[str], base: Mapping[str, Any]) -> list[Operand]:
    """Operands in their order, the reference first; `base` is what they share. A text given twice is numbered.

    Raises ConfigError naming the operand and what is wrong with it.
    """
    if len(texts) < 2:
        raise ConfigError(f"{len(texts)} model is given; expected a reference and at least one to hold against it")
    operands: list[Operand] = []
    for index, text in enumerate(texts):
        label = text or BOX
        if texts.count(text) > 1:
            label += f" #{texts[: index + 1].count(text)}"
        operands.append(Operand(label, parse_operand(text, base)))
    return operands


def parse_operand(text: str, base: Mapping[str, Any]) -> EngineConfig:
    """The options of one operand. Raises ConfigError."""
    model, at, tail = text.rpartition("@")
    parts = tail.split(",")
    if not (at and all("=" in part for part in parts)):
        model, parts = text, []
    options = dict(base) | {"model": None if model in ("", BOX) else model}
    for part in parts:
        name, _, value = part.partition("=")
        field = _field(name.strip().replace("-", "_"), text)
        options[field.name] = _value(field, value.strip(), text)
    return EngineConfig.from_options(**options)


def _field(name: str, operand: str) -> dataclasses.Field[Any]:
    fields = {field.name: field for kind in CONCERNS.values() for field in dataclasses.fields(kind)}
    known = [each for each in fields if each != "model"]
    if name not in known:
        raise ConfigError(f"{operand}: no option {name!r}; expected one of {', '.join(known)}")
    return fields[name]


def _value(field: dataclasses.Field[Any], text: str, operand: str) -> Any:
    """The value as its option holds it; whether it is allowed, the option says itself."""
    if field.metadata["size"]:
        return parse_size(text)
    if isinstance(field.default, bool):
        if text.lower() not in SPELLINGS:
            raise ConfigError(f"{operand}: {field.name} is {text!r}; expected true or false")
        return SPELLINGS[text.lower()]
    if field.metadata["low"] is not None:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"{operand}: {field.name} is {text!r}; expected a whole number") from None
    return text
