"""Turns a directory of Qwen weights in Hugging Face layout into GGUF files: bf16, and quantized by llama.cpp itself.

Runs with the Python of the llamacpp environment. The file has no vocabulary ("none"): prompts are token ids. bf16
weights are copied as they lie in the safetensors file, norms become float32, as llama.cpp's own converter has it.
Usage: convert_gguf.py HF_DIRECTORY OUT_DIRECTORY
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ARCHITECTURES = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
QUANTIZED = {
    "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
    "q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0",
    "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M",
}


def read_bf16(path: Path) -> dict[str, Any]:
    """Every tensor of a safetensors file as a view of 16-bit words. Raises SystemExit for other number formats."""
    size = int.from_bytes(path.open("rb").read(8), "little")
    header = json.loads(path.open("rb").read(8 + size)[8:])
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", 8 + size)
    wrong = [name for name, entry in header.items() if entry["dtype"] != "BF16"]
    if wrong:
        raise SystemExit(f"{path}: {wrong[0]} is {header[wrong[0]]['dtype']}; expected BF16")
    return {
        name: data[entry["data_offsets"][0] : entry["data_offsets"][1]].view(np.uint16).reshape(entry["shape"])
        for name, entry in header.items()
    }


def add_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The shape of the decoder, in GGUF's words."""
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_tokenizer_model("none")


def write_bf16(source: Path, target: Path) -> None:
    """The unquantized GGUF file."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in ARCHITECTURES:
        raise SystemExit(f"model_type is {config['model_type']!r}; expected one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[config["model_type"]]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture])
    add_config(writer, config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, words in read_bf16(source / "model.safetensors").items():
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if called is None:
            raise SystemExit(f"llama.cpp has no name for {name}")
        if words.ndim == 1:
            writer.add_tensor(called, (words.astype(np.uint32) << 16).view(np.float32))
        else:
            writer.add_tensor(called, words.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path, file_type: str) -> None:
    """llama.cpp's own quantizer, with its own choice of format for each tensor."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, file_type)
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if failed:
        raise SystemExit(f"llama.cpp could not quantize {source} to {target.name}: status {failed}")


def main() -> None:
    """Write bf16.gguf and one file for every format of QUANTIZED."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    write_bf16(source, out / "bf16.gguf")
    for name, file_type in QUANTIZED.items():
        quantize(out / "bf16.gguf", out / f"{name}.gguf", file_type)
        print(f"wrote {out / name}.gguf", file=sys.stderr)


if __name__ == "__main__":
    main()
