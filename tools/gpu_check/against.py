"""The same decode in transformers: the same shapes with random weights, its own generate loop, bf16."""

from __future__ import annotations

import time
from typing import Any

import torch

from kvik.checkpoint import open_checkpoint
from tools.gpu_check.measure import MODEL

STEPS = 32


def transformers_decode(results: dict[str, Any]) -> dict[str, Any]:
    """Tokens/s of steps after the first, by batch, at context 128."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    spec = open_checkpoint(MODEL).spec
    config = Qwen3Config(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.max_position,
        tie_word_embeddings=spec.tied_head,
    )
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    rows = [decode_row(model, spec.vocab_size, batch, 128) for batch in (1, 8, 32)]
    del model
    torch.cuda.empty_cache()
    return {"rows": rows}


def decode_row(model: Any, vocab_size: int, batch: int, context: int) -> dict[str, Any]:
    """One batch: the time of STEPS + 1 tokens less that of one."""
    ids = torch.randint(0, vocab_size, (batch, context), device="cuda")
    generate_seconds(model, ids, 2)
    seconds = (generate_seconds(model, ids, STEPS + 1) - generate_seconds(model, ids, 1)) / STEPS
    row = {"batch": batch, "context": context, "ms": seconds * 1e3, "tokens_per_s": batch / seconds}
    print(row, flush=True)
    return row


@torch.inference_mode()
def generate_seconds(model: Any, ids: torch.Tensor, count: int) -> float:
    """Wall time of generating `count` tokens, greedily."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    torch.cuda.synchronize()
    return time.perf_counter() - started
