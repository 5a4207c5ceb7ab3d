"""What the options say reaches a CUDA runner; what is for a GPU alone is refused elsewhere, in a line."""

from __future__ import annotations

from typing import Any

import pytest

from kvik.config import EngineConfig, RunnerOptions
from kvik.errors import BackendError, ConfigError
from kvik.runners import choose
from kvik.runners.forms import kv_head_bytes

ONE_LINE = r"[^\n]+$"


def test_without_a_gpu_the_choice_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "refusal", lambda: "the reason")
    with pytest.raises(BackendError, match=r"^backend is 'cuda', which cannot serve here: the reason$"):
        choose.create_runner(EngineConfig.from_options(backend="cuda"))


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
def test_what_only_a_gpu_does_is_refused_by_other_backends(backend: str) -> None:
    with pytest.raises(ConfigError, match=f"^kv_dtype is 'fp8'; backend '{backend}'.*expected 'cuda'$"):
        EngineConfig.from_options(kv_dtype="fp8", backend=backend)
    with pytest.raises(ConfigError, match=f"^tensor_parallel_size is 2; backend '{backend}' runs on 1 rank{ONE_LINE}"):
        EngineConfig.from_options(tensor_parallel_size=2, backend=backend)


def test_several_ranks_and_fp8_are_for_cuda() -> None:
    config = EngineConfig.from_options(kv_dtype="fp8", backend="cuda", tensor_parallel_size=4, deterministic=True)
    assert (config.runner.tensor_parallel_size, config.cache.kv_dtype) == (4, "fp8")


def test_an_fp8_key_is_a_byte_a_value() -> None:
    assert kv_head_bytes(128, "fp8") == 2 * 128
    assert kv_head_bytes(128, "int8") == 2 * (128 + 4)


class Made:
    """Notes what a runner was made with."""

    def __init__(self, *given: Any, **forms: Any) -> None:
        self.given, self.forms = given, forms


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were two."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(choose, "refusal", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("kvik.runners.cuda.runner.CudaRunner", Made)
    monkeypatch.setattr("kvik.runners.cuda.parallel.runner.ParallelRunner", Made)


OPTIONS = {"weights": "int4", "weight_group_size": 64, "weight_symmetric": True, "deterministic": True}


@pytest.mark.usefixtures("on_a_gpu")
def test_one_rank_gets_the_options() -> None:
    config = EngineConfig.from_options(backend="cuda", kv_dtype="fp8", seed=5, **OPTIONS)
    made: Any = choose.create_runner(config)
    assert made.given == (config.runner,)
    forms = {"weights": "int4", "kv_dtype": "fp8", "group_size": 64, "symmetric": True, "deterministic": True}
    assert made.forms == forms


@pytest.mark.usefixtures("on_a_gpu")
def test_several_ranks_get_the_options() -> None:
    config = EngineConfig.from_options(model="m", backend="cuda", tensor_parallel_size=2, seed=5, **OPTIONS)
    made: Any = choose.create_runner(config)
    model, size, options, forms = made.given
    assert (model, size) == ("m", 2)
    assert RunnerOptions(**options) == RunnerOptions(seed=5)
    assert forms["deterministic"] is True


@pytest.mark.usefixtures("on_a_gpu")
def test_more_ranks_than_gpus_are_refused_before_any_starts() -> None:
    with pytest.raises(BackendError, match=f"tensor_parallel_size is 3; expected at most 2{ONE_LINE}"):
        choose.create_runner(EngineConfig.from_options(backend="cuda", tensor_parallel_size=3))
