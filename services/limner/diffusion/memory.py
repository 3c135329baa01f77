"""Telling that a device's memory is used up, and letting go of what is kept in reserve. Knows no models."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from limner.core.errors import OutOfMemory

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


@contextmanager
def shortage_told(doing: str, device: torch.device) -> Iterator[None]:
    """Raise OutOfMemory, that says what was being done, for memory that runs out inside, and give back what there is of
    it."""
    shortage = None
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        shortage = str(error).partition("\n")[0]
    if shortage is not None:  # the error is gone, and the tensors that its traceback held
        release(device)
        raise OutOfMemory(
            f"not enough memory on {device} to {doing}; ask for a smaller picture, or for less at the same time"
            + (f" ({shortage})" if shortage else "")
        )
