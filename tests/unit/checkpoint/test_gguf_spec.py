"""GGUF metadata and DecoderSpec: each says what the other says, and what Kvik does not do is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvik.checkpoint.dummy import DUMMIES
from kvik.checkpoint.gguf_names import gguf_name
from kvik.checkpoint.gguf_spec import read_gguf_spec, write_gguf_spec
from kvik.checkpoint.spec import DecoderSpec, RopeSpec
from kvik.errors import CheckpointError, UnsupportedModelError

TINY = DUMMIES["tiny-qwen3"]


def stored(value: Any) -> Any:
    """A value as a file gives it back: fractions have been float32."""
    return float(np.float32(value)) if isinstance(value, float) else value


def written(spec: DecoderSpec) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    metadata, factors = write_gguf_spec(spec, "model.gguf")
    general = {"general.architecture": {"mistral": "llama"}.get(spec.family, spec.family)}
    return {**general, **{key: stored(value) for key, value in metadata.items()}}, factors


def read(metadata: dict[str, Any], spec: DecoderSpec = TINY, factors: Any = None) -> DecoderSpec:
    names = {gguf_name(name) for name in spec.tensor_shapes()}
    return read_gguf_spec("model.gguf", metadata, names, spec.vocab_size, lambda: factors)


def again(spec: DecoderSpec) -> DecoderSpec:
    metadata, factors = written(spec)
    return read(metadata, spec, factors)


def shape_alone(spec: DecoderSpec) -> DecoderSpec:
    """What metadata without a tokenizer tell."""
    return replace(
        spec, bos_id=None, eos_ids=(), sliding_window=(), family={"mistral": "llama"}.get(spec.family, spec.family)
    )


@pytest.mark.parametrize("name", DUMMIES)
def test_every_family_comes_back_as_it_was(name: str) -> None:
    spec = replace(DUMMIES[name], sliding_window=())
    assert again(spec) == shape_alone(spec)


def test_biases_of_llama_are_told_by_the_weights() -> None:
    spec = replace(DUMMIES["tiny-llama"], qkv_bias=True, o_bias=True)
    assert again(spec) == shape_alone(spec)


ROPES = [
    RopeSpec(123456.7),
    RopeSpec(10000.0, "linear", factor=2.5),
    RopeSpec(1e6, "yarn", factor=4.0, original_max_position=256, attention_factor=1.1386294364929199),
    RopeSpec(5e5, "llama3", factor=8.0, original_max_position=8192, high_freq_factor=4.0),
    RopeSpec(5e5, "llama3", factor=32.0, original_max_position=8192, high_freq_factor=4.0),
    RopeSpec(5e5, "llama3", factor=8.0, original_max_position=128, high_freq_factor=4.0),
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: f"{rope.kind}-{rope.factor:g}-{rope.original_max_position}")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_rotary_embeddings_come_back_as_they_were(rope: RopeSpec, head_dim: int) -> None:
    spec = replace(TINY, rope=rope, head_dim=head_dim)
    found = again(spec).rope
    np.testing.assert_array_equal(found.inv_freq(head_dim), rope.inv_freq(head_dim))
    assert found.attention_factor == pytest.approx(rope.attention_factor, rel=1e-6)
    assert replace(found, attention_factor=1.0, theta=rope.theta) == replace(rope, attention_factor=1.0)
    assert found.theta == pytest.approx(rope.theta, rel=1e-7)


def test_divisors_of_no_known_making_are_refused() -> None:
    metadata, _ = written(TINY)
    half = TINY.head_dim // 2
    for factors in (np.linspace(1, 9, half), np.full(half, 0.5), np.linspace(1, 2, half) ** 3):
        with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight divides by .* Llama 3's"):
            read(metadata, factors=factors.astype(np.float32))
    for bad in (np.zeros(half), np.full(half, np.nan)):
        with pytest.raises(CheckpointError, match="a divisor that is no positive number"):
            read(metadata, factors=bad.astype(np.float32))
    with pytest.raises(CheckpointError, match=rf"has shape \[3\]; expected \[{half}\]"):
        read(metadata, factors=np.full(3, 2, np.float32))
    assert read(metadata, factors=np.ones(half, np.float32)).rope.kind == "default"


def test_a_yarn_file_may_state_the_length_before_stretching() -> None:
    rope = RopeSpec(1e4, "yarn", factor=4.0, original_max_position=1024)
    assert again(replace(TINY, rope=rope, max_position=1024)).max_position == 4096


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "gemma3"),
        ("qwen3.expert_count", 8),
        ("qwen3.attention.sliding_window", 4096),
        ("qwen3.attention.causal", False),
        ("qwen3.attn_logit_softcapping", 50.0),
        ("qwen3.attention.scale", 0.1),
        ("qwen3.logit_scale", 2.0),
        ("qwen3.rope.scaling.type", "longrope"),
        ("qwen3.rope.dimension_count", 16),
        ("qwen3.attention.value_length", 64),
        ("qwen3.rope.dimension_sections", np.array([1, 2], np.int32)),
        ("qwen3.attention.head_count", np.array([4, 2], np.uint32)),
        ("qwen3.feed_forward_length", np.array([4, 4.5], np.float32)),
    ],
)
def test_what_is_not_done_is_refused_by_name(key: str, value: Any) -> None:
    metadata, _ = written(TINY)
    with pytest.raises(UnsupportedModelError, match=rf"^model\.gguf: {key.replace('.', '[.]')} is .*not supported"):
        read({**metadata, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", 7),
        ("qwen3.block_count", 0),
        ("qwen3.block_count", 2**40),
        ("qwen3.context_length", "long"),
        ("qwen3.embedding_length", None),
        ("qwen3.attention.head_count_kv", 3),
        ("qwen3.attention.key_length", 31),
        ("qwen3.attention.layer_norm_rms_epsilon", float("nan")),
        ("qwen3.rope.freq_base", 0.0),
        ("qwen3.rope.freq_base", float("inf")),
        ("qwen3.vocab_size", 17),
        ("tokenizer.ggml.eos_token_id", 2**31),
        ("tokenizer.ggml.bos_token_id", -1),
    ],
)
def test_values_that_no_model_has_are_refused_by_name(key: str, value: Any) -> None:
    metadata, _ = written(TINY)
    with pytest.raises(CheckpointError, match=rf"^model\.gguf: {key.replace('.', '[.]')} is "):
        read({**metadata, key: value})


def test_sizes_may_be_stated_layer_by_layer_if_all_are_the_same() -> None:
    metadata, _ = written(TINY)
    listed = np.full(TINY.num_layers, TINY.num_heads, np.uint32)
    assert read({**metadata, "qwen3.attention.head_count": listed}).num_heads == TINY.num_heads


def test_what_is_not_stated_follows_from_the_rest() -> None:
    metadata, _ = written(DUMMIES["tiny-llama"])
    for key in (
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "rope.freq_base",
        "vocab_size",
    ):
        del metadata[f"llama.{key}"]
    spec = read(metadata, DUMMIES["tiny-llama"])
    assert (spec.head_dim, spec.rope.theta, spec.vocab_size) == (16, 10000.0, 307)
    del metadata["llama.attention.head_count_kv"]
    assert read(metadata, DUMMIES["tiny-llama"]).num_kv_heads == spec.num_heads


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DUMMIES["tiny-mistral"], "sliding_window is 16, which GGUF cannot say"),
        (replace(TINY, family="fake"), "family is 'fake'; expected one of"),
        (replace(TINY, rope=RopeSpec(1e4, "yarn", factor=2.0, original_max_position=64, truncate=False)), "truncate"),
        (replace(TINY, rope=RopeSpec(1e4, "llama3", 2.0, 64, low_freq_factor=2.0)), "low_freq_factor 2"),
    ],
)
def test_what_gguf_cannot_say_is_not_written(spec: DecoderSpec, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_gguf_spec(spec, "model.gguf")
