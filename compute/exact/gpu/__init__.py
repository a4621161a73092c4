"""The exact class on GPUs: Triton kernels for CUDA and ROCm, the bits of the reference.

Part of *execute*. One source for both vendors, compiled on the card's own machine, or
ahead of time with no card (`python -m shoal.compute.exact.gpu`). Under Triton's
interpreter the same source runs on a CPU, which is how its bits are tested everywhere.
"""
