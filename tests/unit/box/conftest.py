"""Makes `tools.box` importable, behind whatever package is under test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[3])
if ROOT not in sys.path:
    sys.path.append(ROOT)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def small_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a tokenizer learned from a few documents."""
    from tools.box.tokenizer import learn, write

    directory = tmp_path_factory.mktemp("tokenizer")
    write(learn(seed=1, count=400, size=768), directory)
    return directory
