"""GGUF files as checkpoints: the weights of the model they were made from, each in its place, or a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_images as g
import numpy as np
import pytest

from kvik.checkpoint import Checkpoint, DummyCheckpoint, GgufCheckpoint, Tensor, open_checkpoint
from kvik.checkpoint.dummy import DUMMIES
from kvik.checkpoint.formats.gguf.layouts import BY_NAME
from kvik.checkpoint.formats.gguf.pack import pack
from kvik.checkpoint.formats.gguf.unpack import unpack
from kvik.checkpoint.formats.gguf.writer import Planned, write_file
from kvik.checkpoint.gguf_names import gguf_name, heads_in_pairs, rows_from_pairs, rows_to_pairs
from kvik.checkpoint.gguf_write import write_gguf
from kvik.checkpoint.quantized import QuantizedTensor
from kvik.checkpoint.spec import DecoderSpec
from kvik.errors import CheckpointError, UnsupportedModelError

PLAIN = ("tiny-llama", "tiny-qwen2", "tiny-qwen3")


def written(tmp_path: Path, checkpoint: Checkpoint, kind: str = "F32") -> GgufCheckpoint:
    path = tmp_path / "model.gguf"
    write_gguf(path, checkpoint, kind)
    opened = open_checkpoint(str(path))
    assert isinstance(opened, GgufCheckpoint)
    return opened


def equal(left: Checkpoint, right: Checkpoint) -> bool:
    names = left.spec.tensor_shapes()
    return all(np.array_equal(left.tensor(name).float32(), right.tensor(name).float32()) for name in names)


@pytest.mark.parametrize("name", PLAIN)
def test_a_file_holds_the_model_it_was_made_from(name: str, tmp_path: Path) -> None:
    dummy = DummyCheckpoint(name)
    for kind, form in (("F32", "f32"), ("BF16", "bf16")):
        opened = written(tmp_path, dummy, kind)
        assert opened.spec == replace(dummy.spec, dtype=form)
        assert equal(opened, dummy)
        for weight in dummy.spec.tensor_shapes():
            opened.release(weight)


def test_all_biases_of_llama_are_found(tmp_path: Path) -> None:
    spec = replace(DUMMIES["tiny-llama"], qkv_bias=True, o_bias=True)
    dummy = DummyCheckpoint.from_spec(spec)
    assert equal(written(tmp_path, dummy), dummy)


def test_norms_stay_float32_beside_any_matrix(tmp_path: Path) -> None:
    opened = written(tmp_path, DummyCheckpoint("tiny-qwen3"), "F16")
    forms = {name: opened.tensor(name).dtype for name in opened.spec.tensor_shapes()}
    assert {name for name, form in forms.items() if form == "f32"} == {name for name in forms if name.endswith("norm")}
    assert opened.spec.dtype == "f16"


def test_quantized_weights_are_records_and_vectors_are_not(tmp_path: Path) -> None:
    opened = written(tmp_path, DummyCheckpoint("tiny-qwen2"), "Q8_0")
    for name, shape in opened.spec.tensor_shapes().items():
        tensor = opened.tensor(name)
        assert tensor.name == name
        assert tensor.shape == shape
        assert isinstance(tensor, QuantizedTensor) == (len(shape) == 2 and shape[1] % 32 == 0)
    assert opened.tensor("layers.0.down").dtype == "f16", "168 inputs are no blocks of 32"


def test_rows_of_q_and_k_move_whole(tmp_path: Path) -> None:
    """Quantizing and moving rows commute: levels and scales are those of each row, wherever it lay in the file."""
    dummy = DummyCheckpoint("tiny-llama")
    opened = written(tmp_path, dummy, "Q4_0")
    for name in ("layers.1.q", "layers.1.k", "layers.1.v"):
        kind = BY_NAME["Q4_0"]
        expected = unpack(name, kind, pack(dummy.tensor(name).float32(), kind, name), name)
        found = opened.tensor(name)
        assert isinstance(found, QuantizedTensor)
        np.testing.assert_array_equal(found.levels, expected.levels)
        np.testing.assert_array_equal(found.scales, expected.scales)


def test_pairs_are_those_that_rotate_together() -> None:
    rows = rows_from_pairs(2, 6)
    assert rows.tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert rows_to_pairs(2, 6)[rows].tolist() == list(range(12))
    spec = DUMMIES["tiny-llama"]
    assert [heads_in_pairs(spec, f"layers.0.{part}") for part in ("q", "k", "v", "q_bias", "o")] == [4, 4, 0, 4, 0]
    assert heads_in_pairs(DUMMIES["tiny-qwen3"], "layers.0.q") == 0
    assert heads_in_pairs(spec, "embed") == 0


def test_names_are_those_of_the_format_library() -> None:
    library = pytest.importorskip("gguf")
    from kvik.checkpoint.families import FAMILIES

    for family, architecture in (("llama", "LLAMA"), ("qwen2", "QWEN2"), ("qwen3", "QWEN3")):
        table = library.get_tensor_name_map(library.MODEL_ARCH[architecture], 4)
        for name in DummyCheckpoint(f"tiny-{family}").spec.tensor_shapes():
            theirs = table.get_name(FAMILIES[family].tensor_name(name), try_suffixes=(".weight", ".bias"))
            assert gguf_name(name) == theirs


def edited(tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Planned]], None]) -> Path:
    """A small file of which keys and tensors have been changed."""
    spec = DUMMIES["tiny-qwen3"]
    source = written(tmp_path, DummyCheckpoint("tiny-qwen3"))
    keys = {
        "general.architecture": "qwen3",
        "qwen3.context_length": 64,
        "qwen3.embedding_length": spec.hidden_size,
        "qwen3.block_count": spec.num_layers,
        "qwen3.feed_forward_length": spec.intermediate_size,
        "qwen3.attention.head_count": spec.num_heads,
        "qwen3.attention.head_count_kv": spec.num_kv_heads,
        "qwen3.attention.key_length": spec.head_dim,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
    }
    tensors = {}
    for name in spec.tensor_shapes():
        values = source.tensor(name).float32()
        tensors[gguf_name(name)] = planned(gguf_name(name), values)
    change(keys, tensors)
    path = tmp_path / "edited.gguf"
    write_file(path, keys, list(tensors.values()))
    return path


def planned(name: str, values: np.ndarray[Any, Any], kind: str = "F32") -> Planned:
    return Planned(name, BY_NAME[kind], values.shape, lambda: [pack(values, BY_NAME[kind], name)])


def replaced(name: str, values: np.ndarray[Any, Any] | None, kind: str = "F32") -> Callable[..., None]:
    def change(_: dict[str, Any], tensors: dict[str, Planned]) -> None:
        tensors.pop(name, None)
        if values is not None:
            tensors[name] = planned(name, values, kind)

    return change


def zeros(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced("blk.1.attn_v.weight", None), r"tensor blk\.1\.attn_v\.weight is missing; expected shape \[64, 64\]"),
        (
            replaced("blk.0.ffn_up.weight", zeros(8, 8)),
            r"blk\.0\.ffn_up\.weight has shape \[8, 8\]; expected \[168, 64\]",
        ),
        (replaced("blk.0.attn_q_norm.weight", zeros(32), "Q8_0"), r"attn_q_norm\.weight is Q8_0; expected F32"),
        (replaced("blk.9.ffn_up.weight", zeros(8, 8)), r"'blk\.9\.ffn_up\.weight' has no place in a qwen3 model"),
        (replaced("blk.0.ffn_up_exps.weight", zeros(2, 2, 4)), "has no place in a qwen3 model"),
        (replaced("token_embd.weight", None), r"token_embd\.weight is missing or no matrix"),
        (replaced("token_embd.weight", zeros(307)), r"token_embd\.weight is missing or no matrix"),
        (replaced("rope_freqs.weight", zeros(4, 4)), r"rope_freqs\.weight is F32 \[4, 4\]; expected F32 \[n\]"),
        (lambda keys, _: keys.update({"qwen3.block_count": 3}), r"tensor blk\.2\.attn_norm\.weight is missing"),
        (lambda keys, _: keys.update({"tokenizer.ggml.tokens": ["a"] * 308}), "has 308 entries; expected at most 307"),
    ],
)
def test_files_that_are_no_whole_model_are_refused(change: Callable[..., None], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        GgufCheckpoint(edited(tmp_path, change))


def test_a_head_of_its_own_is_the_head(tmp_path: Path) -> None:
    head = np.random.default_rng(0).standard_normal((307, 64)).astype(np.float32)
    opened = GgufCheckpoint(edited(tmp_path, replaced("output.weight", head)))
    assert not opened.spec.tied_head
    np.testing.assert_array_equal(opened.tensor("head").float32(), head)
    assert GgufCheckpoint(edited(tmp_path, replaced("output.weight", None))).spec.tied_head


def test_an_unknown_weight_and_a_bad_step_are_refused_when_asked_for(tmp_path: Path) -> None:
    opened = written(tmp_path, DummyCheckpoint("tiny-qwen3"), "Q8_0")
    for name in ("layers.7.q", "head", "", "q", "layers.0.q_bias"):
        with pytest.raises(CheckpointError, match="has no weight named"):
            opened.tensor(name)
    data = bytearray((tmp_path / "model.gguf").read_bytes())
    entry = opened._weights.entry("blk.0.attn_k.weight")
    data[entry.start : entry.start + 2] = np.float16(np.nan).tobytes()
    broken = GgufCheckpoint(g.write(tmp_path, bytes(data), "broken.gguf"))
    with pytest.raises(CheckpointError, match=r"tensor blk\.0\.attn_k\.weight: d of row 0, block 0 is nan"):
        broken.tensor("layers.0.k")
    assert broken.tensor("layers.0.q").shape == (128, 64)


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda keys, _: keys.update({"general.architecture": "phi3"}))
    with pytest.raises(UnsupportedModelError, match=r"'phi3', which is not supported; supported: llama, qwen2, qwen3"):
        GgufCheckpoint(path)


def test_control_tokens_that_end_an_answer_are_found_by_name(tmp_path: Path) -> None:
    def change(keys: dict[str, Any], _: dict[str, Planned]) -> None:
        keys["tokenizer.ggml.tokens"] = ["a", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "b"]
        keys["tokenizer.ggml.token_type"] = [1, 3, 3, 1, 1]
        keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"] = 4, 1

    assert GgufCheckpoint(edited(tmp_path, change)).spec.eos_ids == (4, 1, 2)


def test_a_model_in_parts_is_opened_by_its_first(tmp_path: Path) -> None:
    dummy = DummyCheckpoint("tiny-qwen3")

    def split(keys: dict[str, Any], tensors: dict[str, Planned]) -> None:
        late = [tensors.pop(name) for name in list(tensors)[5:]]
        part = {"split.count": 2, "split.tensors.count": len(tensors) + len(late)}
        write_file(tmp_path / "m-00002-of-00002.gguf", {**part, "split.no": 1}, late)
        keys.update({**part, "split.no": 0})

    edited(tmp_path, split).rename(tmp_path / "m-00001-of-00002.gguf")
    assert equal(GgufCheckpoint(tmp_path / "m-00001-of-00002.gguf"), dummy)


def test_a_file_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    opened = written(tmp_path, DummyCheckpoint("tiny-llama"))
    assert opened.tokenizer_files() is None
    assert opened.directory is None
    assert opened.name == str(tmp_path / "model.gguf")


def test_plain_weights_are_views_of_the_file(tmp_path: Path) -> None:
    tensor = written(tmp_path, DummyCheckpoint("tiny-qwen3")).tensor("layers.0.up")
    assert isinstance(tensor, Tensor)
    assert not tensor.data.flags.owndata
    assert not tensor.data.flags.writeable


def test_specs_match_whatever_the_form(tmp_path: Path) -> None:
    spec: DecoderSpec = DUMMIES["tiny-qwen3"]
    for kind, form in (("Q8_0", "f16"), ("F16", "f16"), ("BF16", "bf16")):
        assert written(tmp_path, DummyCheckpoint("tiny-qwen3"), kind).spec == replace(spec, dtype=form)
