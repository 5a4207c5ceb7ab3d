"""Kvik: a large-language-model inference engine, readable in an afternoon.

The public door: everything a user needs is a name in this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvik.request import SamplingParams

if TYPE_CHECKING:
    from kvik.engine.async_llm import AsyncLLM
    from kvik.engine.llm import LLM

__version__ = "0.1.0.dev0"
__all__ = ["LLM", "AsyncLLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the engine when it is first asked for, so that `import kvik` costs next to nothing."""
    if name == "LLM":
        from kvik.engine.llm import LLM

        return LLM
    if name == "AsyncLLM":
        from kvik.engine.async_llm import AsyncLLM

        return AsyncLLM
    raise AttributeError(f"module 'kvik' has no attribute {name!r}")
