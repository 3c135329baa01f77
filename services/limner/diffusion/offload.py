"""Weights that are kept in main memory and are on the device only while they are used. Knows no model.

Meant for devices with a memory of their own; on the CPU all of it works and saves nothing.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn


def on_demand(module: nn.Module, device: torch.device) -> None:
    """Let `module` be on `device` while it is called, and in main memory else. For text encoders, which run once a
    prompt.

    Weights are never written, so main memory keeps them all the time, where the device can fetch them by itself, and
    nothing is copied back. Tensors in the arguments are brought to the device, what comes out stays there. The module's
    own `device` says `cpu` between calls. One call at a time: others wait.
    """
    keep_in_main_memory(module, pinned=device.type == "cuda")
    tensors = [*module.parameters(), *module.buffers()]  # tied ones once
    kept = [tensor.data for tensor in tensors]
    forward, lock = module.forward, threading.Lock()

    def brought(*inputs: Any, **named: Any) -> Any:
        with lock:
            try:
                for tensor, data in zip(tensors, kept, strict=True):
                    tensor.data = data.to(device, non_blocking=True)
                return forward(*_moved(inputs, device), **_moved(named, device))
            finally:
                for tensor, data in zip(tensors, kept, strict=True):
                    tensor.data = data

    module.forward = brought


def by_blocks(module: nn.Module, device: torch.device) -> None:
    """Let the blocks of a transformer be on `device` one after the other, the next one on its way while one is at work;
    what comes before and after them while the transformer is called. LoRAs, skipped blocks and calls that run no block
    are fine. Quantise before, if at all; the module must be called from one thread.
    """
    on_cuda = device.type == "cuda"  # others have no streams to fetch by
    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=on_cuda,
        record_stream=on_cuda,  # rather than to wait for the device after each block
    )


def keep_in_main_memory(module: nn.Module, *, pinned: bool) -> None:
    """Bring weights to main memory; pinned, the device can fetch them while the CPU does other things."""
    module.to("cpu")
    if pinned:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.pin_memory()


def _moved(values: Any, device: torch.device) -> Any:
    """Return arguments with their tensors on the device."""
    if isinstance(values, torch.Tensor):
        return values.to(device)
    if isinstance(values, tuple):
        return tuple(_moved(each, device) for each in values)
    return {name: _moved(each, device) for name, each in values.items()} if isinstance(values, dict) else values
