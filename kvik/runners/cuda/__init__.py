"""The CUDA runner: the same decoder as torch products and Triton kernels, for NVIDIA GPUs (Hopper first).

    runner.py    the Protocol                   batch.py     a StepPlan as tensors
    decoder.py   the model, one sentence        cache.py     keys and values as blocks
    weights.py   checkpoint to device           linear.py    a matrix, plain or quantized
    plain.py     every operation in torch       kernels/     the fast ones in Triton
    graphs.py    captured decode steps          sampling.py  drawing on the device
    parallel/    several ranks, one model

Importing this package does not import torch; `refusal` says in one line why it cannot serve here.
"""

from kvik.runners.cuda.presence import refusal

__all__ = ["refusal"]
