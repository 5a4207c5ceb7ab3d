"""The reference runner as a citizen: forms, memory, errors. What it computes is held in tests/parity."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from fakes import whole_prompt

from kvik.checkpoint import open_checkpoint
from kvik.checkpoint.checkpoint import Tensor, float32_to_bf16
from kvik.checkpoint.spec import DecoderSpec, RopeSpec
from kvik.config import EngineConfig, RunnerOptions
from kvik.errors import ConfigError, NotEnoughMemoryError
from kvik.runners.choose import create_runner
from kvik.runners.reference import ReferenceRunner
from kvik.runners.reference.quantized import round_to_bf16
from kvik.runners.runner import MemoryUse
from kvik.step import Float32

SPEC = DecoderSpec("llama", 13, 8, 12, 2, 2, 1, 4, 1e-5, RopeSpec(), 64, dtype="f32")


@dataclass
class FakeCheckpoint:
    """Random weights, stored in one form; remembers what was released."""

    form: str = "f32"
    spec: DecoderSpec = SPEC
    name: str = "fake"
    directory: Path | None = None
    released: list[str] = field(default_factory=list)

    def tensor(self, name: str) -> Tensor:
        shape = self.spec.tensor_shapes()[name]
        values = np.random.default_rng(len(name)).standard_normal(shape, np.float32)
        stored = {"f32": values, "f16": values.astype(np.float16), "bf16": float32_to_bf16(values)}
        return Tensor(name, self.form, stored[self.form])

    def release(self, name: str) -> None:
        self.released.append(name)


@dataclass
class RoundedCheckpoint(FakeCheckpoint):
    """The same weights with their values rounded to bf16, stored as f32."""

    def tensor(self, name: str) -> Tensor:
        return Tensor(name, "f32", round_to_bf16(super().tensor(name).float32()))


def ready(checkpoint: FakeCheckpoint, weights: str = "auto", kv_dtype: str = "auto", **options: str) -> ReferenceRunner:
    runner = ReferenceRunner(RunnerOptions(**options), weights=weights, kv_dtype=kv_dtype)
    runner.load(checkpoint)
    runner.allocate(2, 16)
    return runner


def answer(checkpoint: FakeCheckpoint, weights: str = "auto", kv_dtype: str = "auto", **options: str) -> Float32:
    return ready(checkpoint, weights, kv_dtype, **options).logits(whole_prompt([1, 12, 0, 7]))


def test_auto_is_exact_and_bf16_rounds_the_weights() -> None:
    exact = answer(FakeCheckpoint())
    assert (answer(FakeCheckpoint(), weights="f32", kv_dtype="f32") == exact).all()
    rounded = answer(FakeCheckpoint(), weights="bf16")
    assert (rounded == answer(RoundedCheckpoint())).all()
    assert not (rounded == exact).all()


@pytest.mark.parametrize("form", ["bf16", "f16"])
def test_short_forms_are_held_as_they_are_stored(form: str) -> None:
    assert (answer(FakeCheckpoint(form)) == answer(FakeCheckpoint(form), weights="f32")).all()
    assert not (answer(FakeCheckpoint(form)) == answer(FakeCheckpoint())).all()


def test_bf16_keys_and_values_differ_a_little() -> None:
    assert 0 < np.abs(answer(FakeCheckpoint(), kv_dtype="bf16") - answer(FakeCheckpoint())).max() < 0.2


def test_flash_and_naive_are_one_thing_here() -> None:
    assert (answer(FakeCheckpoint(), attention="naive") == answer(FakeCheckpoint(), attention="flash")).all()


def test_every_weight_is_released_after_reading() -> None:
    checkpoint = FakeCheckpoint()
    ready(checkpoint)
    assert sorted(checkpoint.released) == sorted(SPEC.tensor_shapes())


def test_memory_is_what_the_arrays_take() -> None:
    runner = ready(FakeCheckpoint())
    assert runner.kv_bytes_per_token() == 2 * 2 * 1 * 4 * 4
    assert runner.memory() == MemoryUse(weights=4 * SPEC.num_parameters(), kv=2 * 16 * 64, activations=0)
    runner.close()
    runner.close()
    assert runner.memory() == MemoryUse(0, 0, 0)


def test_it_says_what_it_is() -> None:
    runner = ready(FakeCheckpoint())
    assert (runner.name, runner.vocab_size) == ("reference", 13)
    assert runner.kernels().chosen.startswith("reference")


@pytest.mark.parametrize("wrong", [{"weights": "int5"}, {"kv_dtype": "int4"}])
def test_an_unknown_form_is_refused_by_name(wrong: dict[str, str]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"{name} is '{value}'; the reference runner holds one of auto, f32, bf16"):
        ReferenceRunner(RunnerOptions(), **wrong)


def test_options_of_int4_reach_the_weights() -> None:
    answers = {}
    for size, symmetric in ((32, False), (64, False), (64, True)):
        asked = {"weights": "int4", "weight_group_size": size, "weight_symmetric": symmetric, "backend": "reference"}
        runners = (
            create_runner(EngineConfig.from_options(**asked)),
            ReferenceRunner(RunnerOptions(), weights="int4", group_size=size, symmetric=symmetric),
        )
        for runner in runners:
            runner.load(open_checkpoint("dummy:tiny-qwen3"))
            runner.allocate(1, 32)
        chosen, direct = (runner.logits(whole_prompt([1, 5, 3])) for runner in runners)
        assert (chosen == direct).all()
        answers[size, symmetric] = direct.tobytes()
    assert len(set(answers.values())) == 3


def test_a_cache_no_machine_holds_is_refused_before_it_is_made() -> None:
    runner = ready(FakeCheckpoint())
    with pytest.raises(NotEnoughMemoryError, match=r"KV blocks of 32 tokens need .* GiB; this machine has"):
        runner.allocate(10**12, 32)


def test_weights_no_machine_holds_are_refused_before_they_are_read() -> None:
    huge = FakeCheckpoint(spec=DecoderSpec("llama", 10**9, 10**6, 12, 1, 2, 1, 4, 1e-5, RopeSpec(), 64))
    with pytest.raises(NotEnoughMemoryError, match="the float32 weights of fake need"):
        ReferenceRunner(RunnerOptions()).load(huge)


@pytest.mark.parametrize("token", [-1, 13])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match=f"token id {token}; expected 0 to 12"):
        ready(FakeCheckpoint()).logits(whole_prompt([1, token]))


def test_work_before_loading_or_allocating_is_refused() -> None:
    runner = ReferenceRunner(RunnerOptions())
    with pytest.raises(RuntimeError, match="call load first"):
        runner.allocate(1, 16)
    runner.load(FakeCheckpoint())
    with pytest.raises(RuntimeError, match="call allocate first"):
        runner.logits(whole_prompt([1]))


def test_loading_another_model_forgets_the_cache_of_the_first() -> None:
    runner = ready(FakeCheckpoint())
    runner.load(FakeCheckpoint())
    with pytest.raises(RuntimeError, match="call allocate first"):
        runner.logits(whole_prompt([1]))
