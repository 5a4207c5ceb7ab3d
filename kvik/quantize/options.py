"""What is asked of a quantizer, checked: method, bits, groups, and the format that the result is written in.

Every impossible wish is one error here, before a weight is read. This file knows nothing of how any method works.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvik.checkpoint.formats.awq import AwqLayout
from kvik.checkpoint.formats.compressed import CompressedLayout
from kvik.checkpoint.formats.gptq import GptqLayout
from kvik.checkpoint.formats.layout import Layout
from kvik.checkpoint.spec import DecoderSpec
from kvik.errors import CheckpointError, ConfigError

METHODS = ("gptq", "awq", "int8", "rtn")
FORMATS = ("gptq", "awq", "compressed", "gguf")
HABITUAL = {"gptq": "gptq", "awq": "awq", "int8": "compressed", "rtn": "compressed"}
"""The format each method is written in unless another is asked for."""
CALIBRATED = ("gptq", "awq", "int8")
"""Methods that look at activations."""


@dataclass(frozen=True)
class QuantizeOptions:
    """One job. None stands for what is usual for the method."""

    method: str
    bits: int | None = None
    """4 or 8; int8 is 8."""
    group_size: int = 128
    """Inputs that share a scale; -1 is a whole row. int8 has a scale per row whatever this says."""
    symmetric: bool | None = None
    """Without zero points of their own; usual for all but awq."""
    act_order: bool = False
    """gptq only: inputs with large activations first."""
    damp: float = 0.01
    """gptq only: added to the Hessian's diagonal, as a part of its mean."""
    seed: int = 0
    """Which parts of a long calibration text are taken."""
    format: str | None = None
    num_sequences: int = 128
    sequence_length: int = 512

    def __post_init__(self) -> None:
        """Raises ConfigError naming the option."""
        _one_of("method", self.method, METHODS)
        if self.format is not None:
            _one_of("format", self.format, FORMATS)
        if self.bits not in (None, 4, 8):
            raise ConfigError(f"bits is {self.bits}; expected 4 or 8")
        if self.group_size != -1 and self.group_size < 8:
            raise ConfigError(f"group_size is {self.group_size}; expected -1 or a whole number from 8")
        if not 0 < self.damp < 1:
            raise ConfigError(f"damp is {self.damp:g}; expected a number above 0 and below 1")
        for name in ("num_sequences", "sequence_length"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 2")
        self._check_method()
        self._check_format()

    def _check_method(self) -> None:
        if self.method == "int8" and (self.bits == 4 or self.symmetric is False):
            raise ConfigError("method int8 has 8 bits without zero points; expected rtn for others")
        if self.method == "awq" and self.bits == 8:
            raise ConfigError("bits is 8; method awq has 4")
        if self.act_order and self.method != "gptq":
            raise ConfigError(f"act_order is for method gptq; method is {self.method}")

    def _check_format(self) -> None:
        chosen = self.chosen_format
        if chosen == "awq" and self.num_bits != 4:
            raise ConfigError(f"bits is {self.num_bits}; format awq holds 4")
        if self.act_order and chosen != "gptq":
            raise ConfigError(f"format {chosen} cannot hold act_order; expected format gptq")
        if chosen == "gguf" and self.method != "rtn":
            raise ConfigError(f"format gguf rounds in blocks of its own; expected method rtn, not {self.method}")
        if self.method == "int8" and chosen != "compressed":
            raise ConfigError(f"format {chosen} cannot hold int8's scale per row; expected compressed")

    @property
    def chosen_format(self) -> str:
        """The format asked for, or the method's own."""
        return self.format or HABITUAL[self.method]

    @property
    def num_bits(self) -> int:
        """The bits asked for, or the method's own."""
        return self.bits or (8 if self.method == "int8" else 4)

    @property
    def is_symmetric(self) -> bool:
        """What was asked for, or the method's own."""
        return self.symmetric if self.symmetric is not None else self.method != "awq"

    @property
    def lowest_zero(self) -> int:
        """The smallest zero point that may be chosen: GPTQ's first version cannot hold 0."""
        return 1 if self.chosen_format == "gptq" else 0

    def layout(self) -> Layout:
        """How the result is laid out in safetensors; gguf is laid out otherwise."""
        bits, size, symmetric = self.num_bits, self.group_size, self.is_symmetric
        if self.chosen_format == "gptq":
            return GptqLayout(bits, size, self.act_order, symmetric, damp=self.damp)
        if self.chosen_format == "awq":
            return AwqLayout(size)
        if self.method == "int8":
            return CompressedLayout(8, -1, packed=False, activations=True)
        return CompressedLayout(bits, size, symmetric)


def matrices_of(spec: DecoderSpec) -> dict[str, tuple[int, int]]:
    """The matrices that are quantized: all of the layers, by their names within one. Embedding and head stay."""
    prefix = "layers.0."
    shapes = {name.removeprefix(prefix): shape for name, shape in spec.tensor_shapes().items() if name[:9] == prefix}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}


def check_fits(options: QuantizeOptions, spec: DecoderSpec) -> None:
    """Raises ConfigError for a group size that does not divide, or a shape that the format cannot hold."""
    for name, (outputs, inputs) in matrices_of(spec).items():
        size = options.group_size
        if options.method != "int8" and size != -1 and inputs % size:
            divisors = [
                each for each in (128, 64, 32, 16, 8) if all(k % each == 0 for _, k in matrices_of(spec).values())
            ]
            advice = f"; such as {divisors[0]}" if divisors else ""
            raise ConfigError(f"group_size is {size}; expected a divisor of {inputs}, the inputs of {name}{advice}")
        try:
            options.layout().parts(outputs, inputs)
        except CheckpointError as error:
            raise ConfigError(f"{name} {error}, to be written in format {options.chosen_format}") from error


def _one_of(name: str, value: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(values)}")
