"""Weights that are kept in main memory and are on the device only while they are used. Knows no model.

Meant for devices with a memory of their own; on the CPU all of it works and saves nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
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
    module.to("cpu")
    if device.type == "cuda":
        _put(_weights(module), torch.Tensor.pin_memory)
    kept = _weights(module)
    forward, lock = module.forward, threading.Lock()

    def brought(*inputs: Any, **named: Any) -> Any:
        with lock:
            try:
                _put(kept, lambda tensor: tensor.to(device, non_blocking=True))
                return forward(*_moved(inputs, device), **_moved(named, device))
            finally:
                _put(kept, lambda tensor: tensor)

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


def _weights(module: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """Return every parameter and buffer with the module that has it and its name there."""
    return [
        (owner, name, tensor)
        for owner in module.modules()
        for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False))
    ]


def _put(weights: Sequence[tuple[nn.Module, str, torch.Tensor]], made: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put what is made of each weight in its place; of those that are tied, once."""
    put: dict[int, torch.Tensor] = {}
    for owner, name, tensor in weights:
        new = put.get(id(tensor))
        if new is None:
            new = made(tensor)
            if isinstance(tensor, nn.Parameter) and new is not tensor:
                new = nn.Parameter(new, requires_grad=False)
            put[id(tensor)] = new
        # Not by setattr: while another model is loaded, accelerate makes what is registered in any thread weightless.
        kind: dict[str, Any] = owner._parameters if name in owner._parameters else owner._buffers
        kind[name] = new


def _moved(values: Any, device: torch.device) -> Any:
    """Return arguments with their tensors on the device."""
    if isinstance(values, torch.Tensor):
        return values.to(device)
    if isinstance(values, tuple):
        return tuple(_moved(each, device) for each in values)
    return {name: _moved(each, device) for name, each in values.items()} if isinstance(values, dict) else values
