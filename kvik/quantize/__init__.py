"""Quantizers: from a model to a checkpoint in fewer bits, in the formats of the ecosystem. `quantize` is the door.

The methods are numpy only and go layer by layer. This room knows nothing of engines; what a result is worth is measured
by `kvik eval`.
"""

from __future__ import annotations

from kvik.quantize.options import FORMATS, METHODS, QuantizeOptions
from kvik.quantize.run import Quantized, partial_of, quantize

__all__ = ["FORMATS", "METHODS", "QuantizeOptions", "Quantized", "partial_of", "quantize"]
