"""Decides in which precision a diffusion model is loaded and which of its parts are where, from the memory there is.

Pure: everything it knows of the model is in its `Shape`, everything of the machine in its `Hardware`. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from limner.core.placement import Placement

Dtype = Literal["bf16", "fp16", "fp32"]
Quantisation = Literal["none", "int8", "fp8", "nf4"]
TextEncoders = Literal["device", "offload", "cpu"]


@dataclass(frozen=True)
class Plan:
    """How a model is loaded. All sizes are estimates in bytes."""

    placement: Placement  # device, precision, and the reason for people
    dtype: Dtype  # of the weights that aren't quantised, and of what is computed
    quantisation: Quantisation  # of the denoiser's Linear layers
    t5_quantisation: Quantisation  # of T5's: `none` or `int8`
    text_encoders: TextEncoders  # `offload`: on the CPU, moved to the device while prompts are encoded, one by one
    text_dtype: Dtype  # of the text encoders: another one where the CPU runs them
    vae_dtype: Dtype
    t5: bool  # whether the T5 encoder is loaded
    group_offload: bool  # the denoiser's blocks are on the CPU, and on the device one after the other
    vae_tiling: bool  # pictures are decoded in overlapping tiles
    needed_bytes: int  # of the device's memory at the peak
    cpu_needed_bytes: int  # of main memory, for what is kept there; 0 where the device's memory is main memory
    parts: dict[str, int]  # what `needed_bytes` is made of: `transformer`, `text encoders`, `vae`, `step`, ...
