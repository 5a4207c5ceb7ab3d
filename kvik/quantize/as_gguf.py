"""`--format gguf`: rounding in GGUF's own blocks, which have scales of their own kind and a search of their own.

The writer is the checkpoint room's; what is left here is which kind stands for which bits. This file knows nothing of
blocks.
"""

from __future__ import annotations

from pathlib import Path

from kvik.checkpoint.checkpoint import Checkpoint
from kvik.checkpoint.gguf_write import write_gguf
from kvik.errors import ConfigError

KINDS = {4: "Q4_K_M", 8: "Q8_0"}
"""What is written for so many bits."""


def write_as_gguf(checkpoint: Checkpoint, out: Path, bits: int) -> int:
    """Write one file and return its bytes. Raises ConfigError for a name that no reader would take for GGUF, or that is
    there already; CheckpointError.
    """
    if out.suffix.lower() != ".gguf":
        raise ConfigError(f"{out} is to be one file in format gguf; expected a name that ends in .gguf")
    if out.exists():
        raise ConfigError(f"{out} exists; expected a new file")
    write_gguf(out, checkpoint, KINDS[bits])
    return out.stat().st_size
