"""The one place where a runner is chosen: resolved at start-up, from the options and what can serve here."""

from __future__ import annotations

import warnings
from typing import Any

from kvik.checkpoint.fake import PREFIX as FAKE
from kvik.config import EngineConfig
from kvik.errors import BackendError
from kvik.runners.cuda import refusal, too_few_gpus
from kvik.runners.fake import FakeRunner
from kvik.runners.native import NativeRunner, available
from kvik.runners.reference import ReferenceRunner
from kvik.runners.runner import Runner


def create_runner(config: EngineConfig) -> Runner:
    """The runner that `backend` names; for auto, native if it was built, otherwise reference, saying so once. A fake
    model has a runner of its own.

    Raises BackendError if what was asked for by name cannot serve, with the reason.
    """
    if (config.model.model or "").startswith(FAKE):
        return FakeRunner.of_config(config)
    options = config.runner
    if options.backend == "cuda":
        return _on_gpu(config)
    if options.backend == "reference":
        return _built(ReferenceRunner, config)
    if options.backend == "auto" and not available():
        if options.isa != "auto":
            raise BackendError(f"isa is {options.isa!r}, but the native runner was not built")
        warnings.warn(
            "kvik was installed without its native runner (no C++ compiler was found) and runs on the slow reference "
            "path; install a compiler and reinstall kvik",
            stacklevel=2,
        )
        return _built(ReferenceRunner, config)
    return _built(NativeRunner, config)


def _built(kind: type[ReferenceRunner] | type[NativeRunner], config: EngineConfig) -> Runner:
    return kind(
        config.runner,
        weights=config.model.weights,
        kv_dtype=config.cache.kv_dtype,
        group_size=config.model.weight_group_size,
        symmetric=config.model.weight_symmetric,
    )


def _on_gpu(config: EngineConfig) -> Runner:
    """One rank, or several; torch is imported here and nowhere earlier. Raises BackendError where it cannot serve."""
    why = refusal() or too_few_gpus(config.runner.tensor_parallel_size)
    if why is not None:
        raise BackendError(f"backend is 'cuda', which cannot serve here: {why}")
    from kvik.runners.cuda.parallel.runner import ParallelRunner
    from kvik.runners.cuda.runner import CudaRunner

    options, model = config.runner, config.model
    forms: dict[str, Any] = {
        "weights": model.weights,
        "kv_dtype": config.cache.kv_dtype,
        "group_size": model.weight_group_size,
        "symmetric": model.weight_symmetric,
        "deterministic": options.deterministic,
    }
    if options.tensor_parallel_size == 1:
        return CudaRunner(options, **forms)
    shared = {"attention": options.attention, "enforce_eager": options.enforce_eager, "seed": options.seed}
    return ParallelRunner(model.model, options.tensor_parallel_size, shared, forms)
