"""The model in the box: the small trained model that comes with the package and answers where no other is named.

It is a directory in Hugging Face layout like any other, so that everything that reads such directories reads it too.
This file knows where it is and what to call it, and nothing of what it can do.
"""

from __future__ import annotations

from pathlib import Path

from kvik.errors import CheckpointError

BOX = Path(__file__).parents[1] / "box" / "model"
BOX_NAME = "kvik-box"
"""What results and messages call it."""


def box_directory() -> Path:
    """The directory of the model in the box. Raises CheckpointError where the package came without its weights."""
    if not (BOX / "model.safetensors").is_file():
        raise CheckpointError(
            "no model is named, and this copy of kvik has no model in its box "
            f"({BOX / 'model.safetensors'} is missing); name a directory, a hub id or dummy:NAME, "
            "such as dummy:qwen3-0.6b"
        )
    return BOX
