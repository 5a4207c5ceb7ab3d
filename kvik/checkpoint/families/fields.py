"""Fields: a config.json read with types.

Each reader takes a field's name, its limits and what a missing field means, and answers with the value or raises a
CheckpointError that names file, field, value and what was expected. This file knows nothing of models.
"""

from __future__ import annotations

import math
from typing import Any, Final

from kvik.checkpoint.files import shown
from kvik.errors import CheckpointError, UnsupportedModelError

REQUIRED: Final = object()
"""Default of a field that must be there."""


class Fields:
    """A JSON object with the name of its file; `prefix` names the object itself when it is nested."""

    def __init__(self, file: str, values: dict[str, Any], prefix: str = "") -> None:
        self.file = file
        self.values = values
        self.prefix = prefix

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str) -> Any:
        """The raw value, None if the field is missing."""
        return self.values.get(name)

    def whole(self, name: str, low: int, high: int, default: Any = REQUIRED) -> int:
        """A whole number from low to high."""
        value = self._value(name, default, expected := f"a whole number from {low} to {high}")
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, expected)
        return value

    def whole_or_none(self, name: str, low: int, high: int, default: int | None) -> int | None:
        """A whole number from low to high, or null. The default stands for a missing field, not for null."""
        if self.values.get(name, default) is None:
            return None
        return self.whole(name, low, high, default)

    def number(self, name: str, above: float, high: float, default: Any = REQUIRED) -> float:
        """A finite number above `above`, at most `high`."""
        value = self._value(name, default, expected := f"a number above {above:g} and at most {high:g}")
        if type(value) not in (int, float) or not math.isfinite(value) or not above < value <= high:
            raise self.wrong(name, expected)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def strings(self, name: str) -> tuple[str, ...] | None:
        """A list of strings; None if missing or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of strings")
        return tuple(value)

    def table(self, name: str) -> Fields | None:
        """A nested object; None if missing, null or empty."""
        value = self.values.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(self.file, value, f"{self.prefix}{name}.")

    def _value(self, name: str, default: Any, expected: str) -> Any:
        if name not in self.values and default is REQUIRED:
            raise CheckpointError(f"{self.file}: {self.prefix}{name} is missing; expected {expected}")
        return self.values.get(name, default)

    def wrong(self, name: str, expected: str) -> CheckpointError:
        """The error for a value that no model could have."""
        return CheckpointError(f"{self.file}: {self.prefix}{name} is {shown(self.get(name))}; expected {expected}")

    def unsupported(self, name: str, supported: str) -> UnsupportedModelError:
        """The error for a value that a model may have and Kvik does not do."""
        value = shown(self.get(name))
        return UnsupportedModelError(
            f"{self.file}: {self.prefix}{name} is {value}, which is not supported; supported: {supported}"
        )
