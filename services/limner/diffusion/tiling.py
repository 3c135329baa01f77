"""Pictures that a VAE encodes and decodes piece by piece, which takes less memory; seams may show. Knows no torch."""

from __future__ import annotations

from typing import Any

TILE_SIDE = 512  # pixels


def work_in_tiles(vae: Any) -> None:
    """Let a diffusers AutoencoderKL do larger pictures in overlapping tiles. By itself it would take tiles as large as
    the pictures that it was trained with."""
    reduction = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.tile_sample_min_size = TILE_SIDE
    vae.tile_latent_min_size = TILE_SIDE // reduction
    vae.enable_tiling()
