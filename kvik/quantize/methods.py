"""One layer by any method: the weights of a layer and what enters it, to levels and to what leaves it.

    rtn    every weight to its nearest level; activations are not looked at
    gptq   each matrix as soon as its inputs are known; later ones see what the rounded ones make
    awq    scales and clipping from the exact layer's activations
    int8   rows, migrated where that helps, from the exact layer's activations

This file knows nothing of files, and of layers only the one at hand.
"""

from __future__ import annotations

import numpy as np

from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.spec import DecoderSpec
from kvik.quantize.awq import quantize_awq
from kvik.quantize.blocks import Blocks, judged_by
from kvik.quantize.forward import READERS, LayerForward, Statistics
from kvik.quantize.gptq import quantize_gptq
from kvik.quantize.grid import Grid, Rounded, kept, round_to_nearest
from kvik.quantize.options import CALIBRATED, QuantizeOptions
from kvik.quantize.smooth import quantize_int8
from kvik.step import Float32


class LayerQuantizer:
    """A method with its settings, for the layers of one model."""

    def __init__(self, options: QuantizeOptions, spec: DecoderSpec, length: int) -> None:
        """`length` is that of the calibration sequences; any for a method without."""
        self._options, self._spec = options, spec
        self._forward = LayerForward(spec, length) if options.method in CALIBRATED else None
        self._grid = Grid(options.num_bits, options.is_symmetric, scale_form(options, spec), options.lowest_zero)

    def run(self, layer: int, weights: dict[str, Float32], x: Float32 | None) -> dict[str, QuantizedTensor]:
        """Quantize one layer. `weights` by their names within it; its norms and biases come out as they are to be
        stored. x [sequences, length, hidden] becomes what leaves the layer.
        """
        rounded = self._gptq(layer, weights, x) if self._options.method == "gptq" else self._whole(layer, weights, x)
        return {name: self._tensor(f"layers.{layer}.{name}", each) for name, each in rounded.items()}

    def _whole(self, layer: int, weights: dict[str, Float32], x: Float32 | None) -> dict[str, Rounded]:
        seen: dict[str, Statistics] = {}
        if self._forward is not None and x is not None:
            some = judged_by(x)
            self._forward.run(layer, weights, x, seen.__setitem__)
            if self._options.method == "int8":
                return quantize_int8(self._spec, weights, seen, self._grid)
            blocks = Blocks(self._forward, layer, weights, some, seen)
            return quantize_awq(self._spec, weights, seen, blocks, self._grid, self._options.group_size)
        names = [name for readers in READERS.values() for name in readers]
        return {name: round_to_nearest(weights[name], self._grid, self._size(weights[name])) for name in names}

    def _gptq(self, layer: int, weights: dict[str, Float32], x: Float32 | None) -> dict[str, Rounded]:
        rounded: dict[str, Rounded] = {}
        options = self._options

        def visit(channels: str, seen: Statistics) -> None:
            for name in READERS[channels]:
                size = self._size(weights[name])
                rounded[name] = quantize_gptq(
                    *(weights[name], seen.hessian, self._grid, size), damp=options.damp, act_order=options.act_order
                )
                weights[name] = in_place(rounded[name], size)

        assert self._forward is not None
        assert x is not None
        self._forward.run(layer, weights, x, visit)
        return rounded

    def _size(self, weight: Float32) -> int:
        return weight.shape[1] if self._options.group_size == -1 else self._options.group_size

    def _tensor(self, name: str, rounded: Rounded) -> QuantizedTensor:
        inputs = rounded.levels.shape[1]
        return QuantizedTensor(
            name=name,
            dtype=self._options.layout().dtype,
            bits=self._options.num_bits,
            levels=rounded.levels,
            scales=rounded.scales,
            group_size=inputs // rounded.scales.shape[1],
            zeros=rounded.zeros,
            order=rounded.order,
        )


def in_place(rounded: Rounded, size: int) -> Float32:
    """The values [N, K] of a rounded matrix, inputs in their own order."""
    values = kept(rounded, size)
    if rounded.order is None:
        return values
    out = np.empty_like(values)
    out[:, rounded.order] = values
    return out


def scale_form(options: QuantizeOptions, spec: DecoderSpec) -> str:
    """What scales are stored as: f16 where the format's readers expect it, else the model's own form."""
    return "f16" if options.chosen_format in ("gptq", "awq") else spec.dtype
