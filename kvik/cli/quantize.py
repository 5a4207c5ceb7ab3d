"""`kvik quantize`: a model in fewer bits, as a checkpoint that others load too. The work is in kvik/quantize/.

Only terminal matters live here: flags, the bar, what Ctrl-C leaves. This file knows nothing of methods.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvik.cli.options import json_option
from kvik.cli.terminal import human_bytes, is_terminal, json_line, note
from kvik.errors import ConfigError

if TYPE_CHECKING:
    from kvik.checkpoint import Checkpoint
    from kvik.quantize import Quantized, QuantizeOptions
    from kvik.step import Int32


@click.command("quantize")
@click.argument("model", metavar="MODEL")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--method", type=click.Choice(["gptq", "awq", "int8", "rtn"]), required=True, help="How to round.")
@click.option("--bits", type=click.Choice(["4", "8"]), help="Bits of a weight. Default: 4, or 8 for int8.")
@click.option("--group-size", type=int, default=128, show_default=True, help="Inputs that share a scale; -1 is all.")
@click.option(
    "--calib", type=click.Path(path_type=Path), help="Text to calibrate on, UTF-8. Default: one that comes with kvik."
)
@click.option("--sym/--asym", "symmetric", default=None, help="Without or with zero points. Default: --asym for awq.")
@click.option("--act-order", is_flag=True, help="gptq: inputs with large activations first.")
@click.option("--damp", type=float, default=0.01, show_default=True, help="gptq: damping of the Hessian.")
@click.option("--seed", type=int, default=0, show_default=True, help="Picks the parts of a long calibration text.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["gptq", "awq", "compressed", "gguf"]),
    help="Format of the result. Default: the method's own; compressed (compressed-tensors) for int8 and rtn.",
)
@click.option("--num-sequences", type=int, default=128, show_default=True, help="Most calibration sequences.")
@click.option("--sequence-length", type=int, default=512, show_default=True, help="Tokens of each.")
@json_option
def command(model: str, out: Path, calib: Path | None, form: str | None, as_json: bool, **given: Any) -> None:
    """Write MODEL, a directory, a hub id or "box" for the model in the box, to the directory OUT in fewer bits.

    The result loads in kvik, transformers and vLLM. The work is done layer by layer in OUT.partial, which is renamed to
    OUT at the end; a job that was interrupted goes on when the same command is given again.
    """
    from kvik.checkpoint import open_checkpoint
    from kvik.quantize import QuantizeOptions, partial_of, quantize

    options = QuantizeOptions(**given | {"format": form, "bits": int(given["bits"]) if given["bits"] else None})
    checkpoint = open_checkpoint(None if model == "box" else model)
    try:
        made = quantize(checkpoint, out, options, calibration(checkpoint, options, calib), show_layers)
    except KeyboardInterrupt:
        note(f"interrupted; what is done lies in {partial_of(out)}, and the same command goes on with it")
        raise
    click.echo(json_line(as_data(made, options)) if as_json else as_line(made))


def calibration(checkpoint: Checkpoint, options: QuantizeOptions, calib: Path | None) -> Int32 | None:
    """The sequences of tokens that the method needs; None for one that needs none. Raises ConfigError."""
    from kvik.quantize.calibration import cut_sequences, encode_calibration, read_calibration
    from kvik.quantize.options import CALIBRATED
    from kvik.text.tokenizer import Tokenizer

    if options.method not in CALIBRATED:
        return None
    if checkpoint.directory is None:
        raise ConfigError(f"{checkpoint.name} has no tokenizer, and method {options.method} needs one; rtn does not")
    tokenizer = Tokenizer.from_directory(checkpoint.directory)
    ids = encode_calibration(tokenizer, read_calibration(calib), shipped=calib is None)
    head = tokenizer.encode("", add_special_tokens=True)
    length = min(options.sequence_length, checkpoint.spec.max_position)
    return cut_sequences(ids, head, options.num_sequences, length, options.seed)


def show_layers(layers: Iterable[int], total: int, done: int) -> Iterable[int]:
    """A bar with the time left, on a terminal."""
    from tqdm import tqdm

    if done:
        note(f"{done} of {total} layers were done before")
    bar: Iterable[int] = tqdm(layers, "layers", total, initial=done, unit="layer", disable=not is_terminal(sys.stderr))
    return bar


def as_data(made: Quantized, options: QuantizeOptions) -> dict[str, Any]:
    """The result as plain data."""
    return {
        "directory": str(made.directory),
        "method": options.method,
        "bits": options.num_bits,
        "format": options.chosen_format,
        "layers": made.layers,
        "layers_taken_over": made.layers_taken_over,
        "bytes_before": made.bytes_before,
        "bytes_after": made.bytes_after,
    }


def as_line(made: Quantized) -> str:
    """The result in words."""
    before, after = human_bytes(made.bytes_before), human_bytes(made.bytes_after)
    return f"{made.directory}: {after} of weights, from {before}"
