"""Quantizes plain bf16 weights to what vLLM's CPU kernels read: int8 weights and activations, or int4 weights.

Round to nearest, symmetric: int8 with a scale per output channel and activations quantized per token as they come, int4
in groups of 128 along the input, packed eight to a word, low bits first. Written in the layout called
compressed-tensors; embedding and head stay bf16, which is all that vLLM has for them. Runs in the vllm environment.
Usage: convert_vllm.py HF_DIRECTORY OUT_DIRECTORY int8|int4
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

GROUP = 128
KEPT = ("embed_tokens", "lm_head", "norm")
"""Parts of the names of weights that stay as they are."""
Tensors = dict[str, torch.Tensor]


def weight_scheme(bits: int) -> dict[str, Any]:
    """How the weights are held, in the words of compressed-tensors."""
    shared = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False}
    if bits == 8:
        return shared | {"strategy": "channel", "group_size": None}
    return shared | {"strategy": "group", "group_size": GROUP}


def quantization_config(bits: int) -> dict[str, Any]:
    """What config.json says about it."""
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    scheme = {
        "targets": ["Linear"],
        "weights": weight_scheme(bits),
        "input_activations": activations if bits == 8 else None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == 8 else "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": scheme},
    }


def to_int8(name: str, weight: torch.Tensor) -> Tensors:
    """[N, K] to int8 with one scale for every row."""
    scale = weight.abs().amax(dim=1, keepdim=True).float() / 127
    return {name: (weight.float() / scale).round().to(torch.int8), f"{name}_scale": scale.to(torch.bfloat16)}


def to_int4(name: str, weight: torch.Tensor) -> Tensors:
    """[N, K] to [N, K / 8] words with one scale for every group of 128 in a row."""
    rows, width = weight.shape
    groups = weight.float().reshape(rows, width // GROUP, GROUP)
    scale = groups.abs().amax(dim=2, keepdim=True) / 7
    levels = ((groups / scale).round().clamp(-8, 7) + 8).to(torch.int64).reshape(rows, width // 8, 8)
    words = (levels << torch.arange(0, 32, 4)).sum(dim=2)
    stem = name.removesuffix(".weight")
    return {
        f"{stem}.weight_packed": torch.where(words >= 2**31, words - 2**32, words).to(torch.int32),
        f"{stem}.weight_scale": scale[:, :, 0].to(torch.bfloat16).contiguous(),
        f"{stem}.weight_shape": torch.tensor([rows, width]),
    }


def main() -> None:
    """Convert one directory."""
    source, out, bits = Path(sys.argv[1]), Path(sys.argv[2]), {"int8": 8, "int4": 4}[sys.argv[3]]
    out.mkdir(parents=True)
    quantize = to_int8 if bits == 8 else to_int4
    tensors: Tensors = {}
    with safe_open(source / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            weight = file.get_tensor(name)
            kept = weight.ndim != 2 or any(part in name for part in KEPT)
            tensors |= {name: weight} if kept else quantize(name, weight)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantization_config(bits)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, out / name)


if __name__ == "__main__":
    main()
