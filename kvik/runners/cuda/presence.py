"""Whether this machine can run the CUDA runner, found out without paying for an import of torch where it is absent."""

from __future__ import annotations

import importlib.util

INSTALL = "install kvik[cuda]"


def refusal() -> str | None:
    """Why the CUDA runner cannot serve here, in one line; None if it can."""
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed: {INSTALL}"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA; expected a CUDA build of torch"
    if not torch.cuda.is_available():
        return "torch finds no usable NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}; expected at least 8.0"
    return None


def too_few_gpus(size: int) -> str | None:
    """Why so many ranks cannot start where `refusal` finds nothing wrong, in one line; None if they can."""
    import torch

    count = torch.cuda.device_count()
    return (
        f"tensor_parallel_size is {size}; expected at most {count}, the GPUs that torch finds" if size > count else None
    )
