"""What the native runner promises beyond parity: bytes that no way of computing changes, and clear refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kvik.checkpoint.dummy import DUMMIES, DummyCheckpoint
from kvik.config import RunnerOptions
from kvik.errors import BackendError
from kvik.runners.native import NativeRunner, available, best_isa
from kvik.step import Float32, StepPlan, as_int32

pytestmark = pytest.mark.skipif(not available(), reason="the native runner was not built")
RUNNABLE = [isa for isa, why in available().items() if why is None]
BLOCK = 32


def plan_of(rows: list[tuple[list[int], int, list[int]]]) -> StepPlan:
    """One step from (tokens, first position, block table) a row."""
    counts = [len(tokens) for tokens, _, _ in rows]
    width = max(len(table) for _, _, table in rows)
    return StepPlan(
        step=0,
        keys=np.arange(len(rows), dtype=np.int64),
        token_ids=as_int32([token for tokens, _, _ in rows for token in tokens]),
        positions=as_int32([first + i for tokens, first, _ in rows for i in range(len(tokens))]),
        query_start_loc=as_int32(np.cumsum([0, *counts])),
        seq_lens=as_int32([first + len(tokens) for tokens, first, _ in rows]),
        block_tables=as_int32([table + [-1] * (width - len(table)) for _, _, table in rows]),
    )


def checkpoint_of(name: str = "tiny-qwen3", dtype: str = "bf16") -> DummyCheckpoint:
    return DummyCheckpoint.from_spec(dataclasses.replace(DUMMIES[name], dtype=dtype), seed=1)


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    """700 tokens: more than two of the partitions at which attention cuts a sequence."""
    return np.random.default_rng(0).integers(0, 256, 700).tolist()


def logits_in_chunks(runner: NativeRunner, prompt: list[int], chunk: int, table: list[int]) -> Float32:
    runner.allocate(64, BLOCK)
    starts = range(0, len(prompt), chunk)
    return np.concatenate([runner.logits(plan_of([(prompt[i : i + chunk], i, table)])) for i in starts])


@pytest.fixture(params=["bf16", "f32"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-mistral"])
def test_bytes_do_not_depend_on_chunks_threads_or_blocks(isa: str, name: str, form: str, prompt: list[int]) -> None:
    table = list(range(22))
    outcomes = []
    for threads, chunk, blocks in [(1, 700, table), (2, 61, table[::-1]), (3, 256, [2 * b for b in table])]:
        runner = NativeRunner(RunnerOptions(isa=isa, threads=threads))
        runner.load(checkpoint_of(name, form))
        outcomes.append(logits_in_chunks(runner, prompt, chunk, blocks))
        runner.close()
    assert np.isfinite(outcomes[0]).all()
    assert all(np.array_equal(outcomes[0], other) for other in outcomes[1:])


@pytest.mark.parametrize("isa", RUNNABLE)
def test_decoding_a_long_sequence_split_over_threads_gives_the_prefill_bytes(isa: str, prompt: list[int]) -> None:
    """One row and more threads than KV heads: its partitions are shared out and merged afterwards."""
    runner = NativeRunner(RunnerOptions(isa=isa, threads=5))
    runner.load(checkpoint_of())
    whole = logits_in_chunks(runner, prompt, 700, list(range(22)))
    runner.allocate(64, BLOCK)
    runner.logits(plan_of([(prompt[:690], 0, list(range(22)))]))
    single = [runner.logits(plan_of([([prompt[i]], i, list(range(22)))]))[0] for i in range(690, 700)]
    assert np.array_equal(whole[690:], np.stack(single))


def test_rows_of_a_batch_get_the_bytes_they_get_alone(form: str, prompt: list[int]) -> None:
    runner = NativeRunner(RunnerOptions())
    runner.load(checkpoint_of("tiny-qwen3", form))
    runner.allocate(64, BLOCK)
    tables = [[3 * r, 3 * r + 1, 3 * r + 2] for r in range(21)]
    prompts = [prompt[7 * r : 7 * r + 20 + 3 * r] for r in range(21)]
    together = runner.logits(plan_of([(p, 0, t) for p, t in zip(prompts, tables, strict=True)]))
    runner.allocate(64, BLOCK)
    alone = [runner.logits(plan_of([(p, 0, t)])) for p, t in zip(prompts, tables, strict=True)]
    assert np.array_equal(together, np.concatenate(alone))


def test_logits_of_a_prompt_longer_than_many_chunks_of_logits() -> None:
    """The head is computed for 128 rows at a time; a prompt of 3,000 tokens takes 24 of them in one step."""
    runner = NativeRunner(RunnerOptions(threads=2))
    runner.load(checkpoint_of("tiny-qwen2"))
    ids = np.random.default_rng(1).integers(0, 256, 3000).tolist()
    runner.allocate(100, BLOCK)
    whole = runner.logits(plan_of([(ids, 0, list(range(94)))]))
    runner.allocate(100, BLOCK)
    parts = [runner.logits(plan_of([(ids[i : i + 100], i, list(range(94)))])) for i in range(0, 3000, 100)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_naive_attention_agrees_with_flash(prompt: list[int]) -> None:
    outcomes = []
    for attention in ("flash", "naive"):
        runner = NativeRunner(RunnerOptions(attention=attention))
        runner.load(checkpoint_of(dtype="f32"))
        outcomes.append(logits_in_chunks(runner, prompt, 350, list(range(22))))
    assert np.abs(outcomes[0] - outcomes[1]).max() < 1e-5
    assert not np.array_equal(outcomes[0], outcomes[1])  # they are two computations, not one under two names


def test_old_content_of_a_block_does_not_reach_its_next_owner(prompt: list[int]) -> None:
    """A request that went NaN leaves NaN keys and values behind."""
    runner = NativeRunner(RunnerOptions())
    sick = checkpoint_of(dtype="f32")
    runner.load(sick)
    runner.allocate(64, BLOCK)
    clean = runner.logits(plan_of([(prompt[:40], 0, [0, 1])]))
    poison = np.full(DUMMIES["tiny-qwen3"].hidden_size, np.nan, np.float32)
    original = sick.tensor("embed")
    table = original.data.copy()
    table[5] = poison

    class Poisoned:
        name, spec, directory = "poisoned", sick.spec, None

        def tensor(self, name: str) -> object:
            return dataclasses.replace(original, data=table) if name == "embed" else sick.tensor(name)

        def release(self, name: str) -> None:
            return

    healthy = [token for token in prompt if token != 5][:40]
    runner.load(Poisoned())  # type: ignore[arg-type]
    runner.allocate(64, BLOCK)
    reference = runner.logits(plan_of([(healthy, 0, [0, 1])]))[:, 6:]
    runner.allocate(64, BLOCK)
    assert np.isnan(runner.logits(plan_of([([5] * 60, 0, [0, 1])]))).all()
    again = runner.logits(plan_of([(healthy, 0, [0, 1])]))[:, 6:]
    assert np.isfinite(again).all()
    assert np.array_equal(again, reference)
    assert np.isfinite(clean).all()


def test_weights_are_taken_from_unaligned_memory() -> None:
    plain = checkpoint_of()

    class Shifted:
        name, spec, directory = "shifted", plain.spec, None

        def tensor(self, name: str) -> object:
            tensor = plain.tensor(name)
            buffer = np.zeros(tensor.data.nbytes + 1, np.uint8)
            view = buffer[1:].view(tensor.data.dtype).reshape(tensor.data.shape)
            view[...] = tensor.data
            assert not view.flags.aligned
            return dataclasses.replace(tensor, data=view)

        def release(self, name: str) -> None:
            return

    outcomes = []
    for checkpoint in (plain, Shifted()):
        runner = NativeRunner(RunnerOptions())
        runner.load(checkpoint)  # type: ignore[arg-type]
        runner.allocate(4, BLOCK)
        outcomes.append(runner.logits(plan_of([([1, 2, 3], 0, [0])])))
    assert np.array_equal(*outcomes)


def test_memory_is_told_by_component() -> None:
    runner = NativeRunner(RunnerOptions())
    runner.load(checkpoint_of())
    runner.allocate(10, BLOCK)
    memory = runner.memory()
    spec = DUMMIES["tiny-qwen3"]
    assert memory.weights >= 2 * spec.num_parameters()
    assert runner.kv_bytes_per_token() >= 2 * 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
    assert memory.kv == 10 * BLOCK * runner.kv_bytes_per_token()


def test_the_best_instruction_set_is_chosen_and_the_others_say_why() -> None:
    runner = NativeRunner(RunnerOptions())
    choice = runner.kernels()
    assert choice.chosen == best_isa() == RUNNABLE[0]
    assert choice.chosen != "amx-emulated"
    assert all(why for why in choice.refused.values())


def test_an_instruction_set_that_cannot_run_is_refused_with_the_reason() -> None:
    missing = [isa for isa, why in available().items() if why is not None]
    if not missing:
        pytest.skip("this machine runs every instruction set of the build")
    with pytest.raises(BackendError, match=missing[0]) as error:
        NativeRunner(RunnerOptions(isa=missing[0]))
    assert available()[missing[0]] in str(error.value)


def test_misuse_is_refused() -> None:
    runner = NativeRunner(RunnerOptions())
    with pytest.raises(BackendError, match="no model is loaded"):
        runner.kv_bytes_per_token()
    runner.load(checkpoint_of())
    with pytest.raises(BackendError, match="before the KV cache was allocated"):
        runner.run(plan_of([([1], 0, [0])]))
    with pytest.raises(BackendError, match="block_size is 48"):
        runner.allocate(4, 48)
    runner.close()
    runner.close()
