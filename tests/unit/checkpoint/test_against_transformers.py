"""Configs and files against transformers: it reads what we write, and reads configs the way we do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvik.checkpoint import DummyCheckpoint, HuggingFaceCheckpoint, RopeSpec, write_checkpoint
from kvik.checkpoint.dummy import DUMMIES
from kvik.checkpoint.families import FAMILIES, read_spec
from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.families.rope import read_rope
from kvik.checkpoint.spec import DecoderSpec

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS: list[dict[str, Any] | None] = [
    None,
    {"rope_type": "linear", "factor": 4.0},
    {"type": "linear", "factor": 3},
    {**LLAMA3, "original_max_position_embeddings": 8192},
    {**LLAMA3, "factor": 32, "high_freq_factor": 6, "original_max_position_embeddings": 128},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "truncate": False},
    {"rope_type": "yarn", "factor": 2.5, "beta_fast": 16, "beta_slow": 2.0},
    {"rope_type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.8, "original_max_position_embeddings": 4096},
    {"rope_type": "yarn", "factor": 40, "mscale": 0.7, "original_max_position_embeddings": 4096},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25, "original_max_position_embeddings": 64},
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: str(scaling and scaling.get("factor")))
def test_rotary_frequencies_are_those_of_transformers(scaling: dict[str, Any] | None) -> None:
    for theta, head_dim in itertools.product((1e4, 5e5, 1e6), (8, 16, 64, 80, 128)):
        sizes = {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "head_dim": head_dim}
        values = {**sizes, "max_position_embeddings": 40960, "rope_theta": theta}
        config = transformers.LlamaConfig(**values, rope_scaling=dict(scaling) if scaling else None)
        embedding = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        spec = read_rope(Fields("config.json", {**values, "rope_scaling": scaling}))
        # A power of theta may differ in its last bit between two mathematics libraries; nothing else may.
        ours, theirs = spec.inv_freq(head_dim), embedding.inv_freq.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=3e-7)
        assert (ours == theirs).mean() > 0.96
        assert spec.attention_factor == embedding.attention_scaling


CHANGES: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": None},
    {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": True},
    {"attention_bias": True, "eos_token_id": [3, 5], "bos_token_id": None},
    {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    {"use_sliding_window": True, "sliding_window": 8},
    {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0},
    {"rope_parameters": {"rope_theta": 7e5, "rope_type": "yarn", "factor": 2.0}},
    {"rope_scaling": LLAMA3, "original_max_position_embeddings": 100},
]
SIZES = {
    "vocab_size": 100,
    "hidden_size": 2048,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: ",".join(changes) or "defaults")
def test_configs_mean_what_they_mean_to_transformers(family: str, changes: dict[str, Any]) -> None:
    if family in ("llama", "mistral") and {"sliding_window", "layer_types"} & set(changes):
        pytest.skip("said in another way by this family")
    if family == "mistral" and changes == {"num_key_value_heads": None}:
        pytest.skip("transformers refuses null here")
    values = {**SIZES, **changes}
    spec = read_spec(Fields("config.json", {**values, "model_type": family}))
    config = transformers.AutoConfig.for_model(family, **values)
    model = _empty_model(config)
    layer = model.model.layers[-1].self_attn
    assert (spec.head_dim, spec.num_kv_heads) == (layer.head_dim, config.num_key_value_heads)
    assert (spec.qkv_bias, spec.o_bias) == (layer.q_proj.bias is not None, layer.o_proj.bias is not None)
    assert spec.qk_norm == hasattr(layer, "q_norm")
    assert (spec.tied_head, spec.rms_norm_eps) == (config.tie_word_embeddings, config.rms_norm_eps)
    assert (spec.bos_id, spec.eos_ids) == (config.bos_token_id, _as_tuple(config.eos_token_id))
    assert spec.rope.theta == config.rope_parameters["rope_theta"]
    windows = [getattr(layer.self_attn, "sliding_window", None) or 0 for layer in model.model.layers]
    if family == "mistral":
        windows = [config.sliding_window or 0] * spec.num_layers
    assert [spec.window(at) for at in range(spec.num_layers)] == windows


def _empty_model(config: Any) -> Any:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def _as_tuple(value: int | list[int] | None) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


def test_a_window_counts_the_token_itself_as_in_transformers() -> None:
    from transformers import masking_utils

    mask = masking_utils.sliding_window_causal_mask_function(3)
    here, positions = torch.tensor(5), torch.arange(8)
    seen = positions[mask(0, 0, here, positions)].tolist()
    assert seen == list(range(5 - 3 + 1, 5 + 1))


STRETCHED = RopeSpec(1e6, "yarn", 4.0, 256, attention_factor=1.25)
VARIANTS: dict[str, DecoderSpec] = {
    **{name: spec for name, spec in DUMMIES.items() if name.startswith("tiny-")},
    "llama-bias": replace(DUMMIES["tiny-llama"], qkv_bias=True, o_bias=True, dtype="f32", tied_head=True),
    "qwen3-window": replace(DUMMIES["tiny-qwen3"], sliding_window=(0, 8), qkv_bias=True, o_bias=True, dtype="f16"),
    "qwen3-yarn": replace(DUMMIES["tiny-qwen3"], rope=STRETCHED, eos_ids=(2, 7), dtype="f32"),
    "mistral-full": replace(DUMMIES["tiny-mistral"], sliding_window=(), bos_id=None, tied_head=False),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_opens_what_is_written_and_finds_the_same_weights(name: str, tmp_path: Path) -> None:
    dummy = DummyCheckpoint.from_spec(VARIANTS[name])
    write_checkpoint(dummy, tmp_path, max_shard_bytes=60_000)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype="auto", output_loading_info=True, local_files_only=True
    )
    assert not any(report.values())
    state, family = model.state_dict(), FAMILIES[dummy.spec.family]
    expected = {family.tensor_name(tensor): dummy.tensor(tensor) for tensor in dummy.spec.tensor_shapes()}
    assert set(state) - set(expected) <= {"lm_head.weight"}
    for tensor, weight in expected.items():
        np.testing.assert_array_equal(state[tensor].float().numpy(), weight.float32())
    assert type(model).__name__ == family.architecture


def test_what_transformers_writes_is_opened(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model("qwen3", **{**SIZES, "hidden_size": 64, "tie_word_embeddings": True})
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="100KB")
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert (checkpoint.spec.dtype, checkpoint.spec.tied_head, checkpoint.spec.head_dim) == ("bf16", True, 128)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for name in ("embed", "layers.3.k_norm", "layers.0.down"):
        theirs = model.state_dict()[FAMILIES["qwen3"].tensor_name(name)]
        np.testing.assert_array_equal(checkpoint.tensor(name).float32(), theirs.float().numpy())
