"""What is done when memory runs out in the middle: the same with less at once. Knows no rows."""

from __future__ import annotations

from typing import Any

import torch

from limner.diffusion.memory import is_out_of_memory, release
from limner.diffusion.tiling import work_in_tiles


def halve_when_short(unet: Any, device: torch.device) -> None:
    """Let a UNet that runs out of memory do the rows of its batch, which guidance makes two, one after the other. What
    then still runs out of memory raises."""
    whole = unet.forward

    def forward(sample: torch.Tensor, timestep: Any, **options: Any) -> Any:
        try:
            return whole(sample, timestep, **options)
        except Exception as error:
            if len(sample) == 1 or not is_out_of_memory(error):
                raise
        release(device)  # here, where the error is gone and the tensors that its traceback held
        rows = [
            whole(sample[row : row + 1], timestep, **_only(options, row, len(sample))) for row in range(len(sample))
        ]
        return (torch.cat([output for (output,) in rows]),)

    unet.forward = forward


def decode(vae: Any, latents: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a VAE's pixels in [-1, 1], (n, 3, height, width): by tiles if memory runs out, whose seams may show. For
    one thread at a time."""
    try:
        return torch.as_tensor(vae.decode(latents, return_dict=False)[0])
    except Exception as error:
        if vae.use_tiling or not is_out_of_memory(error):
            raise
    release(device)
    work_in_tiles(vae)
    try:
        return torch.as_tensor(vae.decode(latents, return_dict=False)[0])
    finally:
        vae.disable_tiling()


def _only(value: Any, row: int, count: int) -> Any:
    """Return a row of all tensors of a batch in a call's arguments."""
    if isinstance(value, dict):
        return {name: _only(each, row, count) for name, each in value.items()}
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == count:
        return value[row : row + 1]
    return value
