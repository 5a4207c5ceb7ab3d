"""Configs to specs: what each family reads, and what is refused by name before any weight is looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvik.checkpoint.dummy import DUMMIES
from kvik.checkpoint.families import FAMILIES, read_spec
from kvik.checkpoint.families.fields import Fields
from kvik.checkpoint.spec import DecoderSpec
from kvik.checkpoint.write import config_of
from kvik.errors import CheckpointError, UnsupportedModelError

MISSING = object()


def config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    """A small valid config with some fields changed or taken out."""
    values: dict[str, Any] = {
        "architectures": [FAMILIES[family].architecture],
        "model_type": family,
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        **changes,
    }
    return {name: value for name, value in values.items() if value is not MISSING}


def read(values: dict[str, Any]) -> DecoderSpec:
    return read_spec(Fields("config.json", values))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_found_by_architecture_or_model_type_alone(family: str) -> None:
    assert read(config(family)).family == family
    assert read(config(family, architectures=MISSING)).family == family
    assert read(config(family, model_type=MISSING)).family == family


def test_the_differences_between_families() -> None:
    specs = {family: read(config(family, attention_bias=True)) for family in FAMILIES}
    assert {f: (s.qkv_bias, s.o_bias, s.qk_norm) for f, s in specs.items()} == {
        "qwen3": (True, True, True),
        "qwen2": (True, False, False),
        "llama": (True, True, False),
        "mistral": (False, False, False),
    }
    assert not read(config("qwen3")).qkv_bias
    assert not read(config("llama")).qkv_bias


def test_defaults_of_missing_fields() -> None:
    def spec(family: str, **changes: Any) -> DecoderSpec:
        heads = {"num_attention_heads": 32, "hidden_size": 2048}
        return read(config(family, **heads, num_key_value_heads=MISSING, head_dim=MISSING, **changes))

    assert [spec(f).num_kv_heads for f in FAMILIES] == [32, 32, 32, 8]
    assert [spec(f).head_dim for f in FAMILIES] == [128, 64, 64, 64]
    assert [(spec(f).bos_id, spec(f).eos_ids) for f in FAMILIES] == [(None, ())] * 2 + [(1, (2,))] * 2
    assert {(spec(f).tied_head, spec(f).rms_norm_eps, spec(f).rope.theta) for f in FAMILIES} == {(False, 1e-6, 1e4)}
    assert spec("llama", bos_token_id=None, eos_token_id=None).eos_ids == ()


def test_null_key_value_heads_mean_one_for_each_head() -> None:
    assert [read(config(family, num_key_value_heads=None)).num_kv_heads for family in FAMILIES] == [4] * 4


def test_null_head_dim_is_derived_except_where_it_is_always_stated() -> None:
    assert [read(config(family, head_dim=None)).head_dim for family in ("qwen2", "llama", "mistral")] == [16] * 3
    with pytest.raises(CheckpointError, match="head_dim is None"):
        read(config("qwen3", head_dim=None))


def test_end_tokens_are_one_or_many() -> None:
    assert read(config(eos_token_id=5)).eos_ids == (5,)
    assert read(config(eos_token_id=[5, 7, 5])).eos_ids == (5, 7)
    with pytest.raises(CheckpointError, match="eos_token_id is 100; expected a token id from 0 to 99"):
        read(config(eos_token_id=100))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_layers_slide_from_max_window_layers_on(family: str) -> None:
    on = {"use_sliding_window": True, "sliding_window": 8}
    assert read(config(family, **on, max_window_layers=1)).sliding_window == (0, 8, 8)
    assert read(config(family, **on, max_window_layers=3)).sliding_window == ()
    assert read(config(family, **on)).sliding_window == ()
    assert read(config(family, sliding_window=8, max_window_layers=0)).sliding_window == ()
    assert read(config(family, sliding_window=None, use_sliding_window=True)).sliding_window == ()


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_layer_types_go_before_max_window_layers(family: str) -> None:
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    on = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    assert read(config(family, **on, layer_types=types)).sliding_window == (8, 0, 8)
    with pytest.raises(CheckpointError, match=r"layer_types is .* without use_sliding_window"):
        read(config(family, layer_types=types))
    with pytest.raises(CheckpointError, match=r"layer_types is .*; expected one entry for each"):
        read(config(family, layer_types=types[:2]))


def test_mistral_slides_in_every_layer_or_in_none() -> None:
    assert read(config("mistral", sliding_window=9)).sliding_window == (9, 9, 9)
    assert read(config("mistral", sliding_window=None)).sliding_window == ()
    assert read(config("mistral")).sliding_window == (4096, 4096, 4096)


def test_a_yarn_config_reaches_the_stretched_length() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert read(config("qwen3", rope_scaling=yarn)).max_position == 2048
    assert read(config("qwen3", rope_scaling=yarn, max_position_embeddings=4096)).max_position == 4096
    linear = {"rope_type": "linear", "factor": 4.0}
    assert read(config(rope_scaling=linear)).max_position == 512


def test_a_dtype_in_the_config_is_not_believed_or_even_read() -> None:
    assert read(config(torch_dtype="int3", dtype=7)).dtype == DecoderSpec.dtype


@pytest.mark.parametrize("name", DUMMIES)
def test_a_written_config_reads_back_to_the_same_spec(name: str) -> None:
    spec = DUMMIES[name]
    assert replace(read(config_of(spec)), dtype=spec.dtype) == spec


def test_a_spec_its_family_cannot_say_is_not_written() -> None:
    with pytest.raises(CheckpointError, match="a mistral config cannot say"):
        config_of(replace(DUMMIES["tiny-mistral"], qk_norm=True))
    with pytest.raises(CheckpointError, match="family is 'gpt2'"):
        config_of(replace(DUMMIES["tiny-mistral"], family="gpt2"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_a_spec_has_a_name_of_its_own(family: str) -> None:
    spec = read(config(family, attention_bias=True))
    names = [FAMILIES[family].tensor_name(name) for name in spec.tensor_shapes()]
    assert len(set(names)) == len(names)


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("architectures", "llama", {"architectures": ["GPT2LMHeadModel"]}),
    ("architectures", "llama", {"architectures": ["LlamaForSequenceClassification"]}),
    ("architectures", "qwen3", {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}),
    ("architectures", "llama", {"architectures": ["LlamaForCausalLM", "MistralForCausalLM"]}),
    ("model_type", "llama", {"architectures": MISSING, "model_type": "gemma2"}),
    ("model_type", "llama", {"model_type": "mixtral"}),
    ("model_type", "llama", {"model_type": 5}),
    ("hidden_act", "llama", {"hidden_act": "gelu"}),
    ("hidden_act", "llama", {"hidden_act": None}),
    ("mlp_bias", "llama", {"mlp_bias": True}),
    ("quantization_config.quant_method", "qwen3", {"quantization_config": {"quant_method": "bitsandbytes"}}),
    ("pretraining_tp", "llama", {"pretraining_tp": 2}),
    ("partial_rotary_factor", "llama", {"partial_rotary_factor": 0.5}),
    ("rope_scaling.partial_rotary_factor", "llama", {"rope_scaling": {"partial_rotary_factor": 0.25}}),
    ("rope_scaling.rope_type", "llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    ("rope_scaling.type", "llama", {"rope_scaling": {"type": "longrope", "short_factor": [], "long_factor": []}}),
    ("rope_scaling.type", "llama", {"rope_scaling": {"type": "su"}}),
    ("rope_scaling.type", "qwen2", {"rope_scaling": {"type": "mrope"}}),
    ("rope_scaling.mrope_section", "qwen2", {"rope_scaling": {"type": "default", "mrope_section": [4, 2, 2]}}),
    ("rope_parameters.rope_type", "llama", {"rope_parameters": {"rope_type": "proportional"}}),
    ("rope_parameters.full_attention", "qwen3", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
    ("attn_logit_softcapping", "llama", {"attn_logit_softcapping": 50.0}),
    ("final_logit_softcapping", "llama", {"final_logit_softcapping": 30.0}),
    ("num_experts", "qwen3", {"num_experts": 128}),
    ("num_local_experts", "mistral", {"num_local_experts": 8}),
    ("n_routed_experts", "llama", {"n_routed_experts": 64}),
    ("moe_intermediate_size", "qwen3", {"moe_intermediate_size": 768}),
    ("attn_output_gate", "qwen3", {"attn_output_gate": True}),
    ("headwise_attn_output_gate", "qwen3", {"headwise_attn_output_gate": True}),
    ("embedding_multiplier", "llama", {"embedding_multiplier": 12.0}),
    ("logits_scaling", "llama", {"logits_scaling": 8.0}),
    ("residual_multiplier", "llama", {"residual_multiplier": 0.22}),
    ("attention_multiplier", "llama", {"attention_multiplier": 0.015625}),
    ("query_pre_attn_scalar", "llama", {"query_pre_attn_scalar": 256}),
    ("kv_lora_rank", "llama", {"kv_lora_rank": 512}),
    ("attention_chunk_size", "llama", {"attention_chunk_size": 8192}),
    ("no_rope_layers", "llama", {"no_rope_layers": [1, 1, 0]}),
    ("clip_qkv", "llama", {"clip_qkv": 8.0}),
    ("block_configs", "llama", {"block_configs": [{"attention": {}}]}),
    ("per_layer_config", "llama", {"per_layer_config": {"0": {"num_attention_heads": 2}}}),
    ("dual_chunk_attention_config", "qwen2", {"dual_chunk_attention_config": {"chunk_size": 262144}}),
    ("vision_config", "mistral", {"vision_config": {"hidden_size": 8}}),
    ("is_encoder_decoder", "llama", {"is_encoder_decoder": True}),
    ("layer_types", "qwen3", {"layer_types": ["linear_attention"] * 3}),
    ("layer_types", "mistral", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    ("layer_types", "llama", {"layer_types": ["sliding_attention"] * 3}),
    ("sliding_window", "llama", {"sliding_window": 4096}),
]


@pytest.mark.parametrize(("field", "family", "changes"), REFUSED)
def test_what_kvik_does_not_do_is_refused_by_name(field: str, family: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=f"config.json: {field} is .*; supported: ."):
        read(config(family, **changes))


WRONG: list[tuple[str, Any]] = [
    *((name, value) for name in ("vocab_size", "hidden_size", "num_hidden_layers") for value in (0, -1, 10**12)),
    *((name, value) for name in ("intermediate_size", "num_attention_heads") for value in (0, -1, 10**12)),
    *(("num_key_value_heads", value) for value in (0, 3, 8, -2, 10**12, "2", 2.0, True)),
    *(("head_dim", value) for value in (0, 1, 15, -16, 10**12, "16")),
    *(("max_position_embeddings", value) for value in (0, -1, 10**12, None, 1.5)),
    *(("vocab_size", value) for value in (None, "100", 100.0, True, [100])),
    *(("rms_norm_eps", value) for value in (0, -1e-6, 2, "1e-6", None, float("inf"), float("nan"))),
    *(("rope_theta", value) for value in (0, -1, 1e300, "1e4", None, float("nan"))),
    *(("tie_word_embeddings", value) for value in (1, "true", None)),
    *(("attention_bias", value) for value in (1, "no", None)),
    *(("bos_token_id", value) for value in (-1, 100, "1", [1])),
    *(("eos_token_id", value) for value in (-1, 100, "2", [2, "3"], {"a": 1}, True)),
    *(("rope_scaling", value) for value in ("linear", 4, ["linear", 4])),
    ("architectures", "LlamaForCausalLM"),
    ("architectures", [1]),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_senseless_value_is_refused_with_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"config.json: {field} is .*; expected ") as caught:
        read(config(**{field: value}))
    assert not isinstance(caught.value, UnsupportedModelError)


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"])
def test_a_missing_size_is_named(field: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: {field} is missing; expected a whole number"):
        read(config(**{field: MISSING}))


def test_heads_that_do_not_divide_the_width_need_a_head_dim() -> None:
    assert read(config("qwen3", hidden_size=65)).head_dim == 16
    with pytest.raises(CheckpointError, match="num_attention_heads is 4; expected a divisor of hidden_size"):
        read(config(hidden_size=65, head_dim=None))
    with pytest.raises(CheckpointError, match=r"head_dim is None; expected an even number \(it comes to 15\)"):
        read(config(hidden_size=60, head_dim=None))


def test_names_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(CheckpointError, match="model_type is 'qwen3'; expected 'llama'"):
        read(config(model_type="qwen3"))
    with pytest.raises(CheckpointError, match="model_type is None; expected one of qwen3"):
        read(config(model_type=MISSING, architectures=MISSING))


@pytest.mark.parametrize("window", [0, -1, 1.5, "8", True])
def test_a_senseless_window_is_refused(window: Any) -> None:
    with pytest.raises(CheckpointError, match=r"sliding_window is .*; expected a whole number from 1"):
        read(config("mistral", sliding_window=window))
    with pytest.raises(CheckpointError, match=r"sliding_window is .*; expected a whole number from 1"):
        read(config("qwen3", sliding_window=window, use_sliding_window=True))
