"""The trained model as a Hugging Face directory in bfloat16: `python -m tools.box.export --run DIR --out DIR`.

Afterwards the directory is opened with transformers and with Kvik, and what they make of held-out questions is
compared: an export that the two read differently is refused. This file knows nothing of training.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from kvik import LLM, SamplingParams
from tools.box import heldout
from tools.box.model import Shape
from tools.box.state import progress_of
from tools.box.tokenizer import END, END_OF_TEXT, write, write_json
from tools.box.train import DEFAULT_OUT

MAX_BYTES = 20 * 10**6
TOLERANCE = 2e-3
"""Largest difference of two log-probabilities, both computed in float32, where only the order of sums differs."""


def weights_of(state: Path) -> dict[str, Tensor]:
    """The weights of a run by their Hugging Face names, in bfloat16."""
    with safe_open(state, "pt") as file:
        names = [name for name in file.keys() if name.startswith("model.")]  # noqa: SIM118
        return {name: file.get_tensor(name).bfloat16().contiguous() for name in names}


def export(run: Path, out: Path) -> None:
    """Write the directory. Raises ValueError if the weights take more than MAX_BYTES."""
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    shape = Shape(vocab_size=tokenizer.get_vocab_size())
    weights = weights_of(run / "state.safetensors")
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    if size > MAX_BYTES:
        raise ValueError(f"the weights take {size} bytes; expected at most {MAX_BYTES}")
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "progress": progress_of(run / "state.safetensors")}
    save_file(weights, out / "model.safetensors", metadata)
    (out / "model.safetensors").chmod(0o644)
    write(tokenizer, out, shape.max_position_embeddings)
    ids = tokenizer.token_to_id(END), tokenizer.token_to_id(END_OF_TEXT)
    write_json(out / "config.json", shape.as_config(*ids))


def largest_difference(directory: Path, tasks: Iterable[str] = tuple(heldout.MAKERS), count: int = 3) -> float:
    """Between transformers and Kvik, over the log-probabilities of held-out questions with their answers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    worst = 0.0
    with LLM(model=str(directory), weights="f32", kv_cache_memory="64MiB", max_num_seqs=8) as llm:
        assert llm.tokenizer is not None
        for task in tasks:
            for item in heldout.items(task, count, seed=2):
                messages = [*item.messages, {"role": "assistant", "content": item.answer}]
                ids = llm.tokenizer.encode_chat(messages, add_generation_prompt=False)
                theirs = tokenizer.apply_chat_template(messages, return_dict=False)
                if ids != theirs:
                    raise ValueError(f"{task}: Kvik and transformers make different tokens of {messages}")
                with torch.no_grad():
                    logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
                reference = logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()
                worst = max(worst, float(np.abs(reference - score(llm, ids)).max()))
    return worst


def score(llm: LLM, ids: list[int]) -> np.ndarray:
    """Kvik's log-probabilities of ids[1:]."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    output = llm.generate([ids], params, use_tqdm=False)[0]
    return np.array([entry.logprob for entry in output.prompt_logprobs or () if entry is not None])


def main() -> None:
    """Export, then compare."""
    parser = argparse.ArgumentParser(description="Export a run as a Hugging Face directory and check it.")
    parser.add_argument("--run", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--no-check", action="store_true", help="do not compare with transformers")
    args = parser.parse_args()
    export(args.run, args.out)
    if args.no_check:
        return
    difference = largest_difference(args.out)
    print(f"{args.out}: log-probabilities differ from transformers' by at most {difference:.4f}")
    if difference > TOLERANCE:
        shutil.move(args.out / "model.safetensors", args.out / "model.safetensors.refused")
        raise SystemExit(f"expected at most {TOLERANCE}: the weights are set aside")


if __name__ == "__main__":
    main()
