"""Triton kernels, one file per operation, each with the function that launches it.

Every kernel has a slow twin of the same name and arguments in `plain.py`, which says what it computes. These files are
imported only where Triton is installed; they know nothing of models, steps or which of the twins is used.
"""
