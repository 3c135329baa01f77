"""Telling that a device's memory is used up, and letting go of what is kept in reserve."""

from __future__ import annotations

import gc

import torch

_SAID = (
    "can't allocate memory",  # the CPU's allocator
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: Exception) -> bool:
    """Say whether memory was what was missing. Some devices tell it by the message of a RuntimeError alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in _SAID)


def release(device: torch.device) -> None:
    """Give back what torch keeps of the device's memory for later. Call it when the error that asks for it is gone: its
    traceback holds tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
