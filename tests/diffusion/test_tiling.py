"""VAEs in tiles of the size that plans count with."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL

from limner.diffusion.tiling import TILE_SIDE, work_in_tiles


def test_tiles_are_of_one_size_whatever_the_vae_was_trained_with(monkeypatch):
    vae = AutoencoderKL(
        up_block_types=["UpDecoderBlock2D"] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        block_out_channels=[2] * 4,
        norm_num_groups=1,
        sample_size=2048,
    ).eval()
    work_in_tiles(vae)
    sizes = []

    def decode(latents: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(latents.shape[2:]))
        return torch.zeros(1, 3, 8 * latents.shape[2], 8 * latents.shape[3])

    monkeypatch.setattr(vae.decoder, "forward", decode)
    with torch.inference_mode():
        assert vae.decode(torch.zeros(1, 4, 64, 96)).sample.shape == (1, 3, 512, 768)
    assert max(sizes) == (TILE_SIDE // 8, TILE_SIDE // 8)
    assert len(sizes) > 1
