"""How large a diffusion model's networks are, in numbers of values. Knows neither torch nor any device."""

from __future__ import annotations

from dataclasses import dataclass

from limner.diffusion.variant import Family


@dataclass(frozen=True)
class Part:
    """One network."""

    values: int  # parameters, and buffers that are loaded with them
    linear: int = 0  # of them in matrices of Linear layers, which quantisation makes smaller
    block: int = 0  # in the largest of its repeated blocks; 0: it has none


@dataclass(frozen=True)
class Shape:
    """The networks of a pipeline."""

    name: str  # for messages
    family: Family
    denoiser: Part  # the transformer, or the UNet
    clip: tuple[Part, ...]  # the CLIP text encoders
    t5: Part | None
    vae: Part
    width: int  # channels of the transformer's tokens, or of the UNet's first level
    vae_width: int = 128  # channels of the VAE's level of full size
