"""Encodes the scenes once, so that training needs no autoencoder: `python -m training.sketch.latents [--out DIR]`.

Reads DIR/sketch/scenes.npy and the autoencoder DIR/sketch/vae, writes DIR/sketch/latents.npy: (n, 16, 16, 16) float16,
the posterior's means, shifted and scaled as SD3's transformer takes them: mean 0, variance 1. The autoencoder's shift
and scale are measured here, on all scenes, and written into its folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from training.device import CHOICES, device_of
from training.sketch.vae import tensor
from training.sources import OUT


@torch.no_grad()
def encoded(vae: AutoencoderKL, scenes: NDArray[np.uint8], *, batch: int = 32) -> NDArray[np.float32]:
    """Encode (n, h, w, 3) uint8 pictures to means (n, 16, h / 8, w / 8), neither shifted nor scaled."""
    device = next(vae.parameters()).device
    parts = []
    for start in range(0, len(scenes), batch):
        pictures = tensor(np.array(scenes[start : start + batch])).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            parts.append(vae.encode(pictures).latent_dist.mode().float().cpu().numpy())
    return np.concatenate(parts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.sketch.latents", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of training.sources (default: %(default)s)")
    parser.add_argument("--device", choices=CHOICES, default="auto")
    given = parser.parse_args(arguments)
    device = device_of(given.device)
    folder = given.out / "sketch"
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    vae.to(device, memory_format=torch.channels_last)
    latents = encoded(vae, np.load(folder / "scenes.npy", mmap_mode="r"))
    shift, scale = float(latents.mean()), float(1 / latents.std())
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    vae.save_config(folder / "vae")
    np.save(folder / "latents.npy", ((latents - shift) * scale).astype(np.float16))
    print(f"{len(latents)} latents, shift {shift:.4f}, scale {scale:.4f}", flush=True)


if __name__ == "__main__":
    main()
