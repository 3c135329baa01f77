"""What a row would look like if it ended now."""

from __future__ import annotations

from typing import TypeAlias

import torch
from diffusers import AutoencoderTiny

from limner.diffusion.model import Pixels
from limner.diffusion.sd3.latents import Autoencoder, to_pixels

Decoder: TypeAlias = "AutoencoderTiny | Autoencoder"

# Red, green and blue of each of SD3's 16 latent channels, in [-1, 1]. From Stability AI's sd3.5
# (SD3LatentFormat.decode_latent_to_preview in sd3_impls.py; MIT, © 2024 Stability AI).
_RGB = (
    (-0.0645, 0.0177, 0.1052),
    (0.0028, 0.0312, 0.0650),
    (0.1848, 0.0762, 0.0360),
    (0.0944, 0.0360, 0.0889),
    (0.0897, 0.0506, -0.0364),
    (-0.0020, 0.1203, 0.0284),
    (0.0855, 0.0118, 0.0283),
    (-0.0539, 0.0658, 0.1047),
    (-0.0057, 0.0116, 0.0700),
    (-0.0412, 0.0281, -0.0039),
    (0.1106, 0.1171, 0.1220),
    (-0.0248, 0.0682, -0.0481),
    (0.0815, 0.0846, 0.1207),
    (-0.0120, -0.0055, -0.0867),
    (-0.0749, -0.0634, -0.0456),
    (-0.1418, -0.1457, -0.1259),
)


@torch.inference_mode()
def painted(latents: torch.Tensor, decoder: Decoder | None) -> Pixels:
    """Return a picture of latents without noise, (16, height / 8, width / 8): of their size by a matrix, for
    SD3's own latents alone, or of the picture's by the decoder."""
    if isinstance(decoder, Autoencoder):
        return decoder.decode(latents)
    if decoder is not None:
        return to_pixels(decoder.decode(latents[None].to(decoder.device, decoder.dtype)).sample[0])
    on_host = latents.float().cpu()
    return to_pixels(torch.einsum("chw,cd->dhw", on_host, torch.tensor(_RGB, dtype=torch.float32)))
