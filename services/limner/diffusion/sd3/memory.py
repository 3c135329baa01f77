"""Telling that a device's memory is used up, and letting go of what is kept in reserve."""

from __future__ import annotations

import gc

import torch


def is_out_of_memory(error: Exception) -> bool:
    """Say whether memory was what was missing. On the CPU, torch tells it by the message of a RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release(device: torch.device) -> None:
    """Give back what torch keeps of the device's memory for later. Call it when the error that asks for it is gone: its
    traceback holds tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
