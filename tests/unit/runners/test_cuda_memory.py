"""Keys and values get what a measured step leaves free; a device that runs out or fails says so as Kvik's errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvik.checkpoint import open_checkpoint  # noqa: E402
from kvik.config import EngineConfig, RunnerOptions  # noqa: E402
from kvik.engine.build import plan_checkpoint  # noqa: E402
from kvik.engine.engine import Engine  # noqa: E402
from kvik.engine.llm import LLM  # noqa: E402
from kvik.engine.loaded import plan_loaded  # noqa: E402
from kvik.engine.memory import MIN_MARGIN, ModelFigures  # noqa: E402
from kvik.errors import BackendError, NotEnoughMemoryError, RunnerGoneError  # noqa: E402
from kvik.request import SamplingParams  # noqa: E402
from kvik.runners.cuda.device_memory import GpuMemory, HostMemory, memory_of  # noqa: E402
from kvik.runners.cuda.largest import largest_plan, row_lengths  # noqa: E402
from kvik.runners.cuda.operations import PLAIN  # noqa: E402
from kvik.runners.cuda.runner import CudaRunner  # noqa: E402
from kvik.runners.reference import ReferenceRunner  # noqa: E402
from kvik.runners.runner import OwnMemory  # noqa: E402

MODEL = "dummy:tiny-qwen3"
FORMS = {"weights": "f32", "kv_dtype": "f32"}
MIB = 2**20


@dataclass
class PretendedMemory:
    """A device with this much free, on which every step takes this much. Notes what it was asked, in order."""

    free_bytes: int = 2048 * MIB
    step_bytes: int = 300 * MIB
    asked: list[Any] = field(default_factory=list)

    def free(self) -> int:
        self.asked.append("free")
        return self.free_bytes

    def peak(self, work: Callable[[], object]) -> int:
        self.asked.append(work())
        return self.step_bytes


def loaded(memory: PretendedMemory, **options: Any) -> CudaRunner:
    runner = CudaRunner(RunnerOptions(), device="cpu", memory=memory, **(FORMS | options))
    runner.load(open_checkpoint(MODEL))
    return runner


@pytest.mark.parametrize(
    ("tokens", "rows", "longest", "expected"),
    [
        (10, 4, 64, [7, 1, 1, 1]),
        (10, 4, 4, [4, 4, 1, 1]),
        (4, 4, 64, [1, 1, 1, 1]),
        (100, 3, 5, [5, 5, 5]),
        (9, 1, 64, [9]),
    ],
)
def test_rows_are_as_long_as_may_be_and_as_many(tokens: int, rows: int, longest: int, expected: list[int]) -> None:
    assert row_lengths(tokens, rows, longest).tolist() == expected


def test_the_largest_step_has_all_tokens_and_a_draw_of_each_row() -> None:
    plan = largest_plan(70, 5, 64)
    assert (plan.num_tokens, plan.num_rows, len(plan.sample)) == (70, 5, 5)
    assert plan.seq_lens.tolist() == [64, 3, 1, 1, 1]
    assert plan.positions.tolist() == [*range(64), *range(3), 0, 0, 0]
    assert plan.block_tables.shape == (5, 2)
    assert not plan.block_tables.any()
    assert largest_plan(3, 256, 64).num_rows == 3


def test_a_peak_is_that_of_a_step_with_all_tokens_and_leaves_no_cache() -> None:
    memory = PretendedMemory()
    runner = loaded(memory)
    assert isinstance(runner, OwnMemory)
    assert runner.peak_bytes(40, 6) == 300 * MIB
    assert len(memory.asked[0].token_ids) == 6
    assert not memory.asked[0].failed.any()
    assert runner.memory().kv == 0
    with pytest.raises(BackendError, match="no KV cache is allocated"):
        runner.run(largest_plan(4, 1, 64))


def test_keys_and_values_get_what_is_free_beside_the_measured_step() -> None:
    memory = PretendedMemory()
    config = EngineConfig.from_options(model=MODEL, max_num_seqs=7, max_num_batched_tokens=64)
    runner, checkpoint = loaded(memory), open_checkpoint(MODEL)
    plan = plan_loaded(checkpoint, config, runner)
    assert [len(memory.asked[0].token_ids), memory.asked[1]] == [7, "free"], "what libraries keep is taken by then"
    assert (plan.available, plan.activations, plan.margin) == (2048 * MIB, 300 * MIB, MIN_MARGIN)
    memory.free_bytes = 300 * MIB + MIN_MARGIN + 100 * runner.kv_bytes_per_token()
    assert plan_loaded(checkpoint, config, runner).num_tokens == 96
    memory.free_bytes = 300 * MIB
    with pytest.raises(NotEnoughMemoryError, match="of KV cache"):
        plan_loaded(checkpoint, config, runner)


def test_before_loading_each_of_several_ranks_takes_its_share() -> None:
    checkpoint = open_checkpoint("dummy:qwen3-0.6b")
    one, two = (
        ModelFigures.of_checkpoint(
            checkpoint, EngineConfig.from_options(backend="cuda", kv_dtype="fp8", tensor_parallel_size=size), "cuda"
        )
        for size in (1, 2)
    )
    assert one.kv_bytes_per_token == 28 * 8 * 2 * 128
    assert (two.kv_bytes_per_token, two.weights) == (one.kv_bytes_per_token // 2, one.weights // 2)
    plan = plan_checkpoint(checkpoint, EngineConfig(), "cuda", available=3 * 2**30)
    assert plan.available == 3 * 2**30


def test_an_engine_on_it_answers_as_on_the_reference() -> None:
    config = EngineConfig.from_options(model=MODEL, max_num_seqs=4, max_num_batched_tokens=16, weights="f32")
    answers = []
    for runner in (loaded(PretendedMemory()), ReferenceRunner(RunnerOptions(), **FORMS)):
        checkpoint = open_checkpoint(MODEL)
        if isinstance(runner, ReferenceRunner):
            runner.load(checkpoint)
        with LLM.from_engine(Engine(config, checkpoint, runner, None)) as llm:
            prompts = [[5, 6, 7] * 9, [1, 2]]
            outputs = llm.generate(
                prompts, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True), use_tqdm=False
            )
            answers.append([output.outputs[0].token_ids for output in outputs])
    assert answers[0] == answers[1]


class Allocator:
    """torch.cuda's counters, of a device where a piece of work holds 700 bytes for a while and keeps 50."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = self.most = 1000
        self.cached = 500
        for name in ("synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty_cache)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9000 - self.held - self.cached, 9000))

    def synchronize(self, device: object) -> None:
        pass

    def empty_cache(self) -> None:
        self.cached = 0

    def reset_peak_memory_stats(self, device: object) -> None:
        self.most = self.held

    def memory_allocated(self, device: object) -> int:
        return self.held

    def max_memory_allocated(self, device: object) -> int:
        return self.most

    def work(self) -> None:
        self.most = max(self.most, self.held + 700)
        self.held += 50


def test_a_gpus_peak_is_beyond_what_was_held_and_free_is_what_nobody_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(monkeypatch)
    allocator.most = 5000
    memory = memory_of(torch.device("cuda"))
    assert isinstance(memory, GpuMemory)
    assert memory.peak(allocator.work) == 700
    assert memory.free() == 9000 - 1050


def test_the_cpu_device_has_the_hosts_figures() -> None:
    memory = memory_of(torch.device("cpu"))
    assert isinstance(memory, HostMemory)
    assert memory.free() > 0
    kept: list[Any] = []
    assert memory.peak(lambda: kept.append(np.ones(2**20))) >= 0
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            NotEnoughMemoryError,
            r"a step of 4 tokens do not fit on the GPU \(CUDA out of memory\): lower max_num_batched_tokens",
        ),
        (
            torch.AcceleratorError("CUDA error: an illegal memory access\nCompile with"),
            RunnerGoneError,
            r"the GPU failed with a step of 4 tokens \(CUDA error: an illegal memory access\): restart the engine$",
        ),
    ],
    ids=["memory", "failure"],
)
def test_what_a_device_raises_is_ours(raised: Exception, expected: type[Exception], said: str) -> None:
    def raising(*_: object) -> torch.Tensor:
        raise raised

    runner = loaded(PretendedMemory(), operations=replace(PLAIN, silu_mul=raising))
    with pytest.raises(expected, match=said):
        runner.peak_bytes(4, 1)
    assert runner.memory().kv == 0
