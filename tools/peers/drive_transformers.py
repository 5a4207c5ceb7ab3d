"""Drives Hugging Face transformers: static batches, one forward call per token, bf16.

transformers has no continuous batching of its own worth the name on a CPU, so requests are taken in the order given,
`concurrency` at a time, padded on the left to equal length, and a batch runs until its longest answer is there. The
loop is its generate() without the parts that a greedy answer does not need, which is in its favour: scaled dot-product
attention, a cache that grows, logits for the last position only.
"""

from __future__ import annotations

import sys
from typing import Any

from protocol import Message, Run, serve, usable_cores

PAD = 0


class Transformers:
    """A causal language model of the library."""

    def load(self, asked: Message) -> Message:
        """Load a directory in Hugging Face layout in bf16."""
        import torch
        import transformers

        threads = len(usable_cores(asked["threads"]))
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            asked["model"], dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        return {
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "settings": {"dtype": "bfloat16", "attention": "sdpa", "threads": threads, "batching": "static"},
        }

    def run(self, prompts: list[list[int]], output_lens: list[int], concurrency: int) -> Run:
        """Batch after batch."""
        run = Run(output_lens)
        for start in range(0, len(prompts), concurrency):
            rows = range(start, min(start + concurrency, len(prompts)))
            self._run_batch(rows, [prompts[row] for row in rows], [output_lens[row] for row in rows], run)
        return run.finish()

    def _run_batch(self, rows: range, prompts: list[list[int]], output_lens: list[int], run: Run) -> None:
        import torch

        width = max(map(len, prompts))
        token_ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = (torch.arange(width) >= (width - lengths)[:, None]).long()
        padded = int(lengths.min()) < width
        positions = (mask.cumsum(-1) - 1).clamp(min=0) if padded else None
        cache = None
        for step in range(max(output_lens)):
            out = self._model(
                token_ids,
                attention_mask=mask if padded else None,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache, token_ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            if padded:
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
                positions = (lengths + step)[:, None]
            for row, token_id, wanted in zip(rows, token_ids[:, 0].tolist(), output_lens, strict=True):
                if step < wanted:
                    run.give(row, [token_id], step + 1 == wanted)
            run.mark()


if __name__ == "__main__":
    print(f"transformers under Python {sys.version.split()[0]}", file=sys.stderr)
    serve(Transformers())
