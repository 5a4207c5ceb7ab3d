"""A tokenizer from plain data: what would lie beside a model as files, handed over instead of read.

For models that carry their tokenizer with them, such as a GGUF file. Knows nothing of where the data came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RawTokenizer

from kvik.errors import CheckpointError
from kvik.text.chat_template import ChatTemplate
from kvik.text.files import TokenizerFiles
from kvik.text.tokenizer import Tokenizer


def described_tokenizer(where: str, files: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that these say: `tokenizer` (as in tokenizer.json), `tokenizer_config`, `generation_config`, and
    `chat_templates`, sources by name. `where` names the model in messages. Raises CheckpointError.
    """
    beside = TokenizerFiles(Path(where), dict(files["tokenizer_config"]), {}, dict(files["generation_config"]), {})
    try:
        raw = RawTokenizer.from_str(json.dumps(files["tokenizer"]))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the library is no Exception
        raise CheckpointError(f"{where} has a tokenizer that cannot be built: {error}") from error
    raw.no_truncation()
    raw.no_padding()
    sources = dict(files["chat_templates"])
    return Tokenizer(raw, beside, ChatTemplate(sources, beside.special_tokens()) if sources else None)
