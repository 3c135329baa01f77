"""Pictures as latents and back. Knows no steps.

Latents are (16, height / 8, width / 8) float32 as the transformer sees them: (VAE's - shift) * scale.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from limner.diffusion.model import Pixels
from limner.diffusion.tiling import work_in_tiles

REDUCTION = 8  # pixels a latent, on either side
SCALE, SHIFT = 1.5305, 0.0609  # of SD3's latents (SD3LatentFormat in Stability-AI/sd3.5)


class Distribution(Protocol):
    """What a VAE says of a picture: mean and variance of its latents."""

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Return latents, (1, channels, height / 8, width / 8)."""
        ...


def draw_noise(generator: torch.Generator, width: int, height: int, channels: int) -> torch.Tensor:
    """Return noise of a picture's size, float32 on the CPU: a seed is the same noise on every device."""
    shape = channels, height // REDUCTION, width // REDUCTION
    # Said, as the default is another while a model is loaded: diffusers and transformers change it for all threads.
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def noised(image: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return latents at a noise level, 0 to 1."""
    return (1 - sigma) * image + sigma * noise


class Autoencoder:
    """The VAE. For one thread at a time, as its tiling is switched."""

    def __init__(self, vae: AutoencoderKL, *, tiling: bool = False) -> None:
        self._vae = vae.to(memory_format=torch.channels_last)
        self._scale = float(vae.config.scaling_factor)
        self._shift = float(vae.config.shift_factor or 0.0)
        if tiling:
            self.work_in_tiles()

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self._vae.config.latent_channels)

    @property
    def is_sd3s(self) -> bool:
        """Whether its latents are SD3's, which their normalisation tells: fine-tuned VAEs keep it, other VAEs don't."""
        return abs(self._scale - SCALE) < 1e-4 and abs(self._shift - SHIFT) < 1e-4

    @property
    def tiling(self) -> bool:
        """Whether pictures are done in tiles, which takes less memory."""
        return bool(self._vae.use_tiling)

    def work_in_tiles(self) -> None:
        """Do pictures in tiles from now on."""
        work_in_tiles(self._vae)

    def encode(self, pixels: Pixels) -> Distribution:
        """Return the distribution of what `draw` draws from. `pixels` are (height, width, 3), sides of multiples
        of 8."""
        values = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self._vae.device).float() / 127.5 - 1
        found: Distribution = self._vae.encode(
            values.to(self._vae.dtype, memory_format=torch.channels_last)
        ).latent_dist
        return found

    def draw(self, distribution: Distribution, generator: torch.Generator) -> torch.Tensor:
        """Return latents drawn from what `encode` returned."""
        drawn: torch.Tensor = distribution.sample(generator)[0].float()
        return (drawn - self._shift) * self._scale

    def decode(self, latents: torch.Tensor) -> Pixels:
        """Return the picture, (height, width, 3)."""
        values = latents[None] / self._scale + self._shift
        decoded = self._vae.decode(values.to(self._vae.dtype, memory_format=torch.channels_last)).sample
        return to_pixels(decoded[0])


def to_pixels(values: torch.Tensor) -> Pixels:
    """Return (3, height, width) in [-1, 1] as pixels, clipped and rounded."""
    unit = (values.float() / 2 + 0.5).clamp(0, 1)
    pixels: Pixels = (unit * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    return pixels


def cells(mask: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    """Return which latents are made anew, bool (1, height / 8, width / 8). As in diffusers, the pixel at a latent's
    corner tells, by being replaced by half or more: masks should cover latents wholly, or not at all."""
    corners = np.ascontiguousarray(mask[::REDUCTION, ::REDUCTION] >= 0.5)
    return torch.from_numpy(corners)[None].to(device)
