"""The CUDA runner: the same decoder as torch products and Triton kernels, for NVIDIA GPUs (Hopper first).

    runner.py    the Protocol                   batch.py     a StepPlan as tensors
    decoder.py   the model, one sentence        cache.py     keys and values as blocks
    weights.py   checkpoint to device           linear.py    a matrix, plain or quantized
    plain.py     every operation in torch       kernels/     the fast ones in Triton
    graphs.py    captured decode steps          sampling.py  drawing on the device
    parallel/    several ranks, one model

    device_memory.py   what is free               largest.py   the step that takes most

Importing this package does not import torch; `refusal` says in one line why it cannot serve here, `too_few_gpus` why
not in so many ranks.
"""

from kvik.runners.cuda.presence import refusal, too_few_gpus

__all__ = ["refusal", "too_few_gpus"]
