"""The work folder OUT.partial/work: finished layers, and what enters the next one, so that a job can be gone on with.

    job.json                     what is being made of what; another job is refused
    layer-00007.safetensors      a finished layer, as it will be in the result
    inputs-00008.npy             the calibration activations that enter layer 8 (calibrated methods only)

Each file is written aside and renamed, and the old inputs go when the new ones are there: whenever the program ends,
what lies here is the state after some layer. This file knows nothing of methods.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvik.checkpoint.files import read_json
from kvik.checkpoint.formats.safetensors import SafetensorsFile
from kvik.checkpoint.formats.safetensors_writer import write_safetensors
from kvik.errors import CheckpointError, ConfigError
from kvik.step import Float32

Arrays = Mapping[str, tuple[str, NDArray[Any]]]
"""Type (as safetensors spells it) and data by name."""


class Pieces:
    """The work folder of one job."""

    def __init__(self, partial: Path, job: Mapping[str, Any]) -> None:
        """Make the folder, or open it if it is of the same job. Raises ConfigError if it is of another."""
        self._folder = partial / "work"
        path = self._folder / "job.json"
        text = json.dumps(dict(job), indent=2, sort_keys=True) + "\n"
        if path.exists():
            if read_json(path) != json.loads(text):
                raise ConfigError(
                    f"{partial} holds another job, begun and not finished; delete it or choose another OUT"
                )
        elif partial.exists() and any(partial.iterdir()):
            raise ConfigError(f"{partial} is not empty, and no job of this program; delete it or choose another OUT")
        else:
            self._write_text(path, text)
        for left in self._folder.glob("*.tmp"):
            left.unlink()

    def _write_text(self, path: Path, text: str) -> None:
        aside = path.with_name("job.json.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            aside.write_text(text, encoding="utf-8")
            aside.replace(path)
        except OSError as error:
            shutil.rmtree(self._folder.parent, ignore_errors=True)
            raise CheckpointError(f"{self._folder} cannot be written: {error.strerror or error}") from error

    def finished(self, num_layers: int, *, calibrated: bool) -> int:
        """Layers that need not be done again: all before it are there, and so is what enters the next."""
        count = next((n for n in range(num_layers) if not self._layer(n).exists()), num_layers)
        if not calibrated:
            return count
        return next((n for n in range(count, 0, -1) if self._inputs(n).exists()), 0)

    def save_layer(self, layer: int, arrays: Arrays) -> None:
        """Keep a finished layer. Raises CheckpointError."""
        entries = {name: (dtype, tuple(data.shape)) for name, (dtype, data) in arrays.items()}
        write_safetensors(self._layer(layer), entries, lambda name: arrays[name][1])

    def save_inputs(self, layer: int, x: Float32) -> None:
        """Keep what enters a layer, in place of what entered the one before. Raises CheckpointError."""
        path = self._inputs(layer)
        aside = path.with_name(path.name + ".tmp")
        try:
            with aside.open("wb") as file:
                np.save(file, x, allow_pickle=False)
            aside.replace(path)
            self._inputs(layer - 1).unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error
        finally:
            aside.unlink(missing_ok=True)

    def load_inputs(self, layer: int) -> Float32:
        """What enters a layer."""
        x: Float32 = np.load(self._inputs(layer), allow_pickle=False)
        return x

    def open_layer(self, layer: int) -> SafetensorsFile:
        """A finished layer. Raises CheckpointError."""
        return SafetensorsFile(self._layer(layer))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._folder)

    def _layer(self, layer: int) -> Path:
        return self._folder / f"layer-{layer:05}.safetensors"

    def _inputs(self, layer: int) -> Path:
        return self._folder / f"inputs-{layer:05}.npy"
