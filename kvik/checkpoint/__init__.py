"""What a model is on disk: config to DecoderSpec, files to tensors. `open_checkpoint` is the door.

A model is opened and checked here and read by whoever computes it. This room knows nothing of runners, devices or
tokenizers.
"""

from __future__ import annotations

from pathlib import Path

from kvik.checkpoint.box import BOX_NAME, box_directory
from kvik.checkpoint.checkpoint import Checkpoint, Tensor
from kvik.checkpoint.dummy import PREFIX, DummyCheckpoint
from kvik.checkpoint.fake import PREFIX as FAKE
from kvik.checkpoint.fake import FakeCheckpoint
from kvik.checkpoint.families import read_spec
from kvik.checkpoint.files import shown
from kvik.checkpoint.gguf import GgufCheckpoint
from kvik.checkpoint.gguf_write import write_gguf
from kvik.checkpoint.hf import HuggingFaceCheckpoint, read_config
from kvik.checkpoint.hub import download, is_hub_id
from kvik.checkpoint.spec import DecoderSpec, RopeSpec
from kvik.checkpoint.write import write_checkpoint
from kvik.errors import CheckpointError

__all__ = [
    "BOX_NAME",
    "Checkpoint",
    "DecoderSpec",
    "DummyCheckpoint",
    "FakeCheckpoint",
    "GgufCheckpoint",
    "HuggingFaceCheckpoint",
    "RopeSpec",
    "Tensor",
    "box_directory",
    "open_checkpoint",
    "write_checkpoint",
    "write_gguf",
]


def open_checkpoint(model: str | None, *, seed: int = 0) -> Checkpoint:
    """Open a model: `dummy:NAME`, `fake:` with parameters, a `.gguf` file, a directory in Hugging Face layout, or a
    hub id `org/name[@revision]`. None is the model in the box.

    `seed` makes the weights of a dummy. A directory that exists goes before a hub id of the same spelling. Raises
    CheckpointError, UnsupportedModelError.
    """
    if model is None:
        return HuggingFaceCheckpoint(box_directory(), name=BOX_NAME)
    if model.startswith(PREFIX):
        return DummyCheckpoint(model, seed)
    if model.startswith(FAKE):
        return FakeCheckpoint(model)
    if model.lower().endswith(".gguf"):
        return GgufCheckpoint(model)
    if _is_directory(model):
        return HuggingFaceCheckpoint(model)
    if is_hub_id(model):
        return HuggingFaceCheckpoint(download(model, lambda path: read_spec(read_config(path))), name=model)
    raise CheckpointError(
        f"{shown(model)}: no such directory; expected a model directory, a .gguf file, a hub id (org/name) or "
        f"{PREFIX}NAME"
    )


def _is_directory(model: str) -> bool:
    try:
        path = Path(model)
        if model and path.is_file():
            raise CheckpointError(f"{shown(model)} is a file; expected the directory it lies in")
        return bool(model) and path.is_dir()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{shown(model)} is no path: {error}") from error
