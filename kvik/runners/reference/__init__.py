"""The reference runner: the decoder in plain numpy float32, slow and obvious.

It is the executable definition of what `kvik/checkpoint/spec.py` says in words, the oracle that every fast runner is
held against, and what serves on a machine without a compiler. It knows nothing of speed.
"""

from kvik.runners.reference.runner import ReferenceRunner

__all__ = ["ReferenceRunner"]
