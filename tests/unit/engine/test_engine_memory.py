"""The memory plan fits what it says, and free memory is the least of every limit that holds."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_spec

from kvik.checkpoint import DummyCheckpoint, open_checkpoint
from kvik.config import EngineConfig
from kvik.engine.free_memory import available_memory
from kvik.engine.memory import MIN_MARGIN, ModelFigures, activation_bytes, human, plan_memory
from kvik.errors import ConfigError, NotEnoughMemoryError
from kvik.runners.choose import create_runner
from kvik.runners.native import available

GIB = 2**30
MODEL = ModelFigures("toy", weights=GIB, kv_bytes_per_token=1024, activations=2**20, max_position=4096)


def config(**options: object) -> EngineConfig:
    return EngineConfig.from_options(**options)


def test_the_parts_fit_what_is_available() -> None:
    plan = plan_memory(MODEL, 2 * GIB, config(max_num_seqs=1024))
    assert plan.weights + plan.activations + plan.margin + plan.kv <= 2 * GIB
    assert plan.weights + plan.activations + plan.margin + plan.kv > 2 * GIB - 1024 * plan.block_size
    assert plan.num_tokens == plan.num_blocks * plan.block_size
    assert plan.num_sequences == plan.num_tokens // 4096


def test_no_more_is_reserved_than_requests_could_use() -> None:
    plan = plan_memory(MODEL, 1000 * GIB, config(max_num_seqs=3))
    assert plan.num_tokens == 3 * 4096
    assert plan.max_model_len == 4096


def test_loaded_weights_are_not_counted_twice() -> None:
    loaded = ModelFigures("toy", GIB, 1024, 2**20, 4096, loaded=True)
    before, after = plan_memory(MODEL, 3 * GIB, config()), plan_memory(loaded, 2 * GIB, config())
    assert abs(before.kv - after.kv) <= 0.1 * GIB + 1024 * 32


def test_the_longest_request_shrinks_to_what_fits_unless_it_was_asked_for() -> None:
    available = MODEL.weights + MODEL.activations + MIN_MARGIN + 1024 * 100
    tight = ModelFigures("toy", 0, 1024, 0, 4096)
    plan = plan_memory(tight, MIN_MARGIN + 1024 * 100, config())
    assert plan.max_model_len == plan.num_tokens == 96
    with pytest.raises(NotEnoughMemoryError, match=r"one sequence of 97 tokens of toy needs 128.00 KiB.*at most 96"):
        plan_memory(tight, MIN_MARGIN + 1024 * 100, config(max_model_len=97))
    with pytest.raises(NotEnoughMemoryError, match="use a smaller model"):
        plan_memory(MODEL, available // 2, config())


def test_longer_than_the_model_was_trained_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_model_len is 5000; expected at most 4096, what toy was trained for"):
        plan_memory(MODEL, 4 * GIB, config(max_model_len=5000))


def test_a_size_that_was_asked_for_is_taken_or_refused() -> None:
    plan = plan_memory(MODEL, 4 * GIB, config(kv_cache_memory="1GiB", max_num_seqs=1))
    assert plan.kv == GIB
    with pytest.raises(NotEnoughMemoryError, match=r"8.00 GiB needs 9.00 GiB; 4.00 GiB are available.*kv_cache_memory"):
        plan_memory(MODEL, 4 * GIB, config(kv_cache_memory="8GiB"))
    with pytest.raises(NotEnoughMemoryError, match="one sequence of 4096 tokens"):
        plan_memory(MODEL, 4 * GIB, config(kv_cache_memory="1MiB", max_model_len=4096))


def test_contiguous_blocks_are_as_long_as_the_longest_request() -> None:
    plan = plan_memory(MODEL, 4 * GIB, config(kv_layout="contiguous", max_model_len=1000, max_num_seqs=5))
    assert (plan.block_size, plan.num_blocks) == (1024, 5)
    plan = plan_memory(MODEL, 4 * GIB, config(kv_layout="contiguous", max_num_seqs=5, kv_cache_memory="9MiB"))
    assert (plan.block_size, plan.num_blocks, plan.num_sequences) == (4096, 2, 2)


QWEN = DummyCheckpoint("dummy:qwen3-0.6b")
MATRICES = 28 * (1024 * (2048 + 1024 + 1024) + 2048 * 1024 + 3 * 1024 * 3072) + 151936 * 1024
ROWS = 28 * (2048 + 1024 + 1024 + 1024 + 2 * 3072 + 1024) + 151936
NORMS = 28 * (2 * 1024 + 2 * 128) + 1024


@pytest.mark.parametrize(
    ("options", "backend", "weights", "norms", "per_token"),
    [
        ({}, "native", 2, 4, 2),
        ({}, "cuda", 2, 2, 2),
        ({"weights": "f32"}, "native", 4, 4, 4),
        ({"weights": "f32", "kv_dtype": "bf16"}, "native", 4, 4, 2),
        ({}, "reference", 4, 4, 4),
    ],
)
def test_figures_before_loading(
    options: dict[str, str], backend: str, weights: int, norms: int, per_token: int
) -> None:
    figures = ModelFigures.of_checkpoint(QWEN, config(**options), backend)
    assert figures.weights == MATRICES * weights + NORMS * norms
    assert figures.kv_bytes_per_token == 2 * 28 * 8 * 128 * per_token
    assert figures.activations == activation_bytes(QWEN.spec, config())


@pytest.mark.parametrize(
    ("options", "matrices"),
    [
        ({"weights": "int8"}, MATRICES + 4 * ROWS),
        ({"weights": "int4"}, MATRICES // 2 + 3 * MATRICES // 32),
        ({"weights": "int4", "weight_group_size": 128}, MATRICES // 2 + 3 * MATRICES // 128),
    ],
)
def test_figures_of_weights_quantized_on_load(options: dict[str, Any], matrices: int) -> None:
    figures = ModelFigures.of_checkpoint(QWEN, config(**options), "native")
    assert figures.weights == matrices + 4 * NORMS
    assert figures.kv_bytes_per_token == 2 * 28 * 8 * 128 * 2
    reference = ModelFigures.of_checkpoint(QWEN, config(**options), "reference")
    assert reference.weights == 4 * QWEN.spec.num_parameters()


def test_figures_of_int8_keys_and_values() -> None:
    odd = DummyCheckpoint.from_spec(replace(QWEN.spec, head_dim=80))
    per_token = ModelFigures.of_checkpoint(odd, config(kv_dtype="int8"), "native").kv_bytes_per_token
    assert per_token == 28 * 8 * 2 * (96 + 4)


FORMS: list[dict[str, Any]] = [
    {"weights": "bf16"},
    {"weights": "f32"},
    {"weights": "int8", "kv_dtype": "int8"},
    {"weights": "int4"},
    {"weights": "int4", "weight_group_size": 64},
    {"weights": "int4", "weight_group_size": 128, "weight_symmetric": True},
]


@pytest.mark.skipif(not available(), reason="the native runner was not built")
@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-qwen2", "tiny-llama", "box"])
def test_figures_before_loading_are_those_of_the_loaded_model(name: str) -> None:
    checkpoint = open_checkpoint(None if name == "box" else f"dummy:{name}")
    for options in FORMS if name != "box" else FORMS[-1:]:
        asked = config(backend="native", threads=1, **options)
        runner = create_runner(asked)
        runner.load(checkpoint)
        before = ModelFigures.of_checkpoint(checkpoint, asked, "native")
        loaded = ModelFigures.of_runner("q", checkpoint.spec, asked, runner)
        runner.close()
        assert before.kv_bytes_per_token == loaded.kv_bytes_per_token
        assert before.weights == loaded.weights, options


def test_the_lines_say_what_fits() -> None:
    text = "\n".join(plan_memory(MODEL, 4 * GIB, config(max_num_seqs=3, max_model_len=1024)).lines())
    for fact in ("toy", "4.00 GiB", "1.00 GiB", "3,072", "1,024 tokens", "trained for 4,096", "3 of the longest"):
        assert fact in text


def test_sizes_are_readable() -> None:
    assert [human(n) for n in (5, 2048, 3 * 2**20, GIB)] == ["5 B", "2.00 KiB", "3.00 MiB", "1.00 GiB"]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n"}
V1 = "sys/fs/cgroup/memory"
V2 = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8000000 * 1024),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                f"{V2}/a/b/memory.max": "max\n",
                f"{V2}/a/b/memory.current": "5\n",
                f"{V2}/a/memory.max": "1000000\n",
                f"{V2}/a/memory.current": "400000\n",
                f"{V2}/a/memory.stat": "anon 3\ninactive_file 1000\n",
            },
            601000,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/host/only\n",
                f"{V1}/memory.limit_in_bytes": "700000\n",
                f"{V1}/memory.usage_in_bytes": "200000\n",
            },
            500000,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                f"{V1}/memory.limit_in_bytes": "9223372036854771712\n",
                f"{V1}/memory.usage_in_bytes": "200000\n",
            },
            8000000 * 1024,
        ),
        (
            {"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "100\n", f"{V2}/memory.current": "300\n"},
            0,
        ),
    ],
    ids=["system", "version 2, parent", "version 1, host path", "version 1, no limit", "over its limit"],
)
def test_free_memory_is_the_least_limit(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert available_memory(write(tmp_path, MEMINFO | files)) == expected


def test_free_memory_without_linux_files_is_the_physical_memory(tmp_path: Path) -> None:
    assert available_memory(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_address_space_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10_000_000, -1))
    write(tmp_path, MEMINFO | {"proc/self/statm": "100 50 3 1 0 9 0\n"})
    assert available_memory(tmp_path) == 10_000_000 - 100 * os.sysconf("SC_PAGE_SIZE")


def test_activations_grow_with_the_step() -> None:
    spec = fake_spec()
    assert activation_bytes(spec, config(max_num_batched_tokens=4096)) > activation_bytes(spec, config())
