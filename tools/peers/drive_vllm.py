"""Drives vLLM on a CPU, in this process, one engine step at a time.

Settings after vLLM's CPU documentation: tcmalloc and Intel's OpenMP preloaded, a thread bound to every core, the KV
cache given its memory beforehand, bf16. The engine core runs in this process, so that no core is kept for a scheduler;
the OpenMP variables are those that vLLM sets for its worker processes. Prefix caching is off: the same prompts are run
several times.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from protocol import Given, Message, Run, closed_loop, restart_with, serve, usable_cores

GIB = 2**30


def preload() -> None:
    """Start again with the allocator and OpenMP before all other libraries."""
    libraries = Path(sys.prefix) / "lib"
    wanted = [libraries / "libtcmalloc_minimal.so.4", libraries / "libiomp5.so"]
    missing = [path.name for path in wanted if not path.exists()]
    if missing:
        print(f"vLLM's documentation asks to preload {', '.join(missing)}; not in {libraries}", file=sys.stderr)
    found = ":".join(str(path) for path in wanted if path.exists())
    restart_with({"LD_PRELOAD": found}, "DRIVE_VLLM_PRELOADED")


def set_environment(threads: int | None, kv_gibibytes: int) -> None:
    """What OpenMP and vLLM read when they begin: before either is imported."""
    cores = usable_cores(threads)
    named = ",".join(map(str, cores))
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gibibytes),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": named,
        "OMP_NUM_THREADS": str(len(cores)),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{named}]",
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


class Vllm:
    """vLLM's engine, stepped by hand."""

    def load(self, asked: Message) -> Message:
        """Load a directory in Hugging Face layout; a quantized one says so in its config."""
        gibibytes = max(1, -(-asked["kv_bytes"] // GIB))
        set_environment(asked["threads"], gibibytes)
        import torch
        import vllm

        chosen: dict[str, Any] = {
            "dtype": "bfloat16",
            "max_model_len": asked["max_len"],
            "max_num_seqs": asked["max_seqs"],
            "enable_prefix_caching": False,
            "skip_tokenizer_init": True,
        }
        self._llm = vllm.LLM(model=asked["model"], **chosen)
        self._engine, self._runs = self._llm.llm_engine, 0
        scheduler = self._engine.vllm_config.scheduler_config
        return {
            "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
            "settings": chosen
            | {
                "kv_cache_gib": gibibytes,
                "max_num_batched_tokens": scheduler.max_num_batched_tokens,
                "threads": torch.get_num_threads(),
                "preload": ":".join(Path(file).name for file in os.environ["LD_PRELOAD"].split(":")),
            },
        }

    def run(self, prompts: list[list[int]], output_lens: list[int], concurrency: int) -> Run:
        """All prompts through the engine."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._runs += 1

        def add(index: int, prompt: list[int], output_len: int) -> None:
            params = SamplingParams(
                temperature=0.0,
                max_tokens=output_len,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            self._engine.add_request(f"{self._runs}-{index}", {"prompt_token_ids": prompt}, params)

        return closed_loop(prompts, output_lens, concurrency, add, self._step)

    def _step(self) -> list[Given]:
        return [
            (int(output.request_id.split("-")[1]), list(output.outputs[0].token_ids), output.finished)
            for output in self._engine.step()
        ]


if __name__ == "__main__":
    preload()
    serve(Vllm())
