"""The parts of an SD 1 or SDXL pipeline, loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase


@dataclass
class Parts:
    """Names as in a diffusers folder. Each is in evaluation mode, on the device and in the dtype that it runs in. There
    is no safety checker and no watermark."""

    family: Literal["sdxl", "sd1"]
    unet: UNet2DConditionModel  # of 9 channels: for inpainting; of 4: a base model
    vae: AutoencoderKL
    text_encoder: CLIPTextModel  # CLIP-L
    tokenizer: PreTrainedTokenizerBase
    scheduler: dict[str, Any]  # its configuration: the noise schedule, and what the UNet predicts
    device: torch.device  # where latents and the UNet's inputs are
    dtype: torch.dtype  # of the latents and the UNet's inputs
    text_encoder_2: CLIPTextModelWithProjection | None = None  # OpenCLIP bigG; SDXL's
    tokenizer_2: PreTrainedTokenizerBase | None = None
    force_zeros: bool = True  # SDXL: whether an empty negative prompt is zeros, not encoded

    @property
    def inpaints(self) -> bool:
        """Whether the UNet was trained with masks: it sees the mask and what is around it, and can't do without."""
        return bool(self.unet.config.in_channels == 9)
