"""`quantize`: a model to a quantized checkpoint, layer by layer, in a folder aside that is renamed when all is done.

Memory holds one layer's weights and the calibration activations. A job that ended early, for whatever reason, is gone
on with by asking for it again; the same job gives the same bytes. This file knows nothing of how a layer is quantized
or how a file is laid out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvik.checkpoint.checkpoint import Checkpoint, Tensor
from kvik.checkpoint.formats.safetensors_writer import entry_bytes
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.errors import CheckpointError, ConfigError
from kvik.quantize.as_gguf import write_as_gguf
from kvik.quantize.assemble import STORED, assemble, layer_arrays
from kvik.quantize.methods import LayerQuantizer, scale_form
from kvik.quantize.options import CALIBRATED, QuantizeOptions, check_fits
from kvik.quantize.pieces import Pieces
from kvik.step import Float32, Int32

Show = Callable[[Iterable[int], int, int], Iterable[int]]
"""Shows progress: the layers still to do, how many there are in all, how many are done; gives out the layers."""


@dataclass(frozen=True)
class Quantized:
    """What was made."""

    directory: Path
    bytes_before: int
    bytes_after: int
    layers: int
    layers_taken_over: int
    """Finished in an earlier run of the same job."""


def quantize(
    checkpoint: Checkpoint,
    out: Path,
    options: QuantizeOptions,
    sequences: Int32 | None = None,
    show: Show = lambda layers, total, done: layers,
) -> Quantized:
    """Write a quantized checkpoint to `out`, a directory that is empty or not there; in format gguf a file.

    `sequences` [n, length] of token ids are what methods calibrate on; rtn needs none. Raises ConfigError for what
    cannot be done, CheckpointError for weights that are not numbers and for failures to write.
    """
    check_source(checkpoint)
    if options.chosen_format == "gguf":
        written = write_as_gguf(checkpoint, out, options.num_bits)
        return Quantized(out, plain_bytes(checkpoint), written, checkpoint.spec.num_layers, 0)
    check_fits(options, checkpoint.spec)
    check_out(out)
    calibrated = options.method in CALIBRATED
    if calibrated and sequences is None:
        raise ConfigError(f"method {options.method} needs calibration sequences")
    partial = partial_of(out)
    pieces = Pieces(partial, job_of(checkpoint, options, sequences if calibrated else None))
    total = checkpoint.spec.num_layers
    done = pieces.finished(total, calibrated=calibrated)
    x = None
    if calibrated and sequences is not None and done < total:
        x = embedded(checkpoint, sequences) if done == 0 else pieces.load_inputs(done)
    quantizer = LayerQuantizer(options, checkpoint.spec, sequences.shape[1] if sequences is not None else 1)
    for layer in show(range(done, total), total, done):
        _one_layer(checkpoint, layer, options, quantizer, pieces, x)
    written = assemble(checkpoint, pieces, options.layout(), partial)
    _finish(pieces, partial, out)
    return Quantized(out, plain_bytes(checkpoint), written, total, done)


def _one_layer(
    checkpoint: Checkpoint,
    layer: int,
    options: QuantizeOptions,
    quantizer: LayerQuantizer,
    pieces: Pieces,
    x: Float32 | None,
) -> None:
    weights = layer_weights(checkpoint, layer)
    vectors = [name for name, values in weights.items() if values.ndim == 1]
    matrices = quantizer.run(layer, weights, x)
    kept = {name: weights[name] for name in vectors}
    form = scale_form(options, checkpoint.spec)
    pieces.save_layer(layer, layer_arrays(checkpoint, layer, kept, matrices, options.layout(), form))
    if x is not None:
        pieces.save_inputs(layer + 1, x)


def plain_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of a model's weights as they are."""
    form = STORED[checkpoint.spec.dtype]
    return entry_bytes({name: (form, shape) for name, shape in checkpoint.spec.tensor_shapes().items()})


def _finish(pieces: Pieces, partial: Path, out: Path) -> None:
    try:
        pieces.remove()
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise CheckpointError(f"{partial} cannot be renamed to {out}: {error.strerror or error}") from error


def partial_of(out: Path) -> Path:
    """The folder aside."""
    return out.with_name(out.name + ".partial")


def check_out(out: Path) -> None:
    """Raises ConfigError unless `out` can be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty directory; expected a new one")


def check_source(checkpoint: Checkpoint) -> None:
    """Raises ConfigError for a model that is quantized already, or has no weights."""
    name = "layers.0.q"
    tensor = checkpoint.tensor(name)
    if isinstance(tensor, QuantizedTensor):
        raise ConfigError(f"{checkpoint.name} is quantized already ({tensor.dtype}); expected bf16, f16 or f32 weights")


def layer_weights(checkpoint: Checkpoint, layer: int) -> dict[str, Float32]:
    """A layer's weights by their names within it. Raises CheckpointError for NaN or infinity."""
    prefix, weights = f"layers.{layer}.", {}
    for name in checkpoint.spec.tensor_shapes():
        if name.startswith(prefix):
            values = checkpoint.tensor(name).float32()
            checkpoint.release(name)
            if not np.isfinite(values).all():
                raise CheckpointError(f"{checkpoint.name}: weight {name} holds NaN or infinity; expected numbers")
            weights[name.removeprefix(prefix)] = values
    return weights


def embedded(checkpoint: Checkpoint, sequences: Int32) -> Float32:
    """What enters the first layer, [n, length, hidden]. Raises ConfigError, CheckpointError."""
    vocab = checkpoint.spec.vocab_size
    if sequences.min() < 0 or sequences.max() >= vocab:
        raise ConfigError(f"the calibration text has token {sequences.max()}; expected 0 to {vocab - 1}")
    table = checkpoint.tensor("embed")
    assert isinstance(table, Tensor)
    x = Tensor(table.name, table.dtype, table.data[sequences]).float32()
    checkpoint.release("embed")
    if not np.isfinite(x).all():
        raise CheckpointError(f"{checkpoint.name}: weight embed holds NaN or infinity; expected numbers")
    return x


def job_of(checkpoint: Checkpoint, options: QuantizeOptions, sequences: Int32 | None) -> dict[str, Any]:
    """What tells one job from another: the options, the model's spec and a taste of its weights, the sequences."""
    taste = hashlib.sha256()
    for name in checkpoint.spec.tensor_shapes():
        if name.endswith(("norm", ".o")):
            tensor = checkpoint.tensor(name)
            assert isinstance(tensor, Tensor)
            taste.update(np.ascontiguousarray(tensor.data[:1]).tobytes())
            checkpoint.release(name)
    text = None if sequences is None else hashlib.sha256(np.ascontiguousarray(sequences).tobytes()).hexdigest()
    spec = json.loads(json.dumps(asdict(checkpoint.spec)))
    return {"options": asdict(options), "spec": spec, "weights": taste.hexdigest(), "sequences": text}
