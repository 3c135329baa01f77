"""The parts of an SD3 pipeline, loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase, T5EncoderModel

from limner.diffusion.sd3.transformer import Transformer


@dataclass
class Components:
    """Names as in a diffusers folder. Each is in evaluation mode, on the device and in the dtype that it runs in."""

    transformer: Transformer
    text_encoder: CLIPTextModelWithProjection  # CLIP-L
    text_encoder_2: CLIPTextModelWithProjection  # OpenCLIP bigG
    text_encoder_3: T5EncoderModel | None  # T5 v1.1 XXL
    tokenizer: PreTrainedTokenizerBase
    tokenizer_2: PreTrainedTokenizerBase
    tokenizer_3: PreTrainedTokenizerBase | None
    vae: AutoencoderKL
    device: torch.device  # where latents and the transformer's inputs are
    dtype: torch.dtype  # of the transformer's inputs; latents are kept in float32
    preview_decoder: AutoencoderTiny | None = None
