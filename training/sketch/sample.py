"""Draws pictures with limner-sketch before it is exported: `python -m training.sketch.sample [PROMPT ...] [--out DIR]`.

The training's own forward pass and Euler steps; a server draws with `limner.diffusion`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.sketch import text, transformer
from training.sketch.network import Sketch, best
from training.sources import OUT

Pixels = NDArray[np.uint8]
STEPS, GUIDANCE, SHIFT = 24, 4.0, 1.5
PROMPTS = (
    "a red apple",
    "a cat",
    "a blue car",
    "a house",
    "a dog face",
    "a pizza",
    "a purple banana",
    "a rose",
    "a rocket",
    "a smiling face",
    "a green tree on a blue background",
    "a guitar",
    "a red apple in a photograph",
    "a photograph of grass",
    "an ice cream",
    "a pink elephant",
)
GAP = 4  # pixels between the pictures of a grid


@torch.no_grad()
def latents(
    network: Sketch,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    shift: float = SHIFT,
    seed: int = 0,
    text_length: int = text.LONGEST,
) -> Tensor:
    """Return latents (n, 16, 16, 16) float32 of prompts, by Euler's method with classifier-free guidance.

    The noise of a prompt depends on the seed and on its place among them.
    """
    device = next(network.parameters()).device
    ids = text.tokens(tokenizer, [*prompts, *[""] * len(prompts)]).to(device)
    noise = torch.randn(len(prompts), 16, transformer.NATIVE, transformer.NATIVE, generator=torch.manual_seed(seed))
    current = noise.to(device)
    counts = text.counts(text_length).to(device)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    with torch.autocast(device.type, torch.bfloat16):
        read, pooled = network.read(ids)
        for now, after in pairwise(scheduler.sigmas.tolist()):
            times = torch.full((len(ids),), 1000 * now, device=device)
            both = transformer.velocity(network.transformer, current.repeat(2, 1, 1, 1), times, read, pooled, counts)
            with_prompt, without = both.float().chunk(2)
            current = current + (after - now) * torch.lerp(without, with_prompt, guidance)
    return current


@torch.no_grad()
def decoded(vae: Any, values: Tensor) -> Pixels:
    """Return pictures (n, 8 height, 8 width, 3) uint8 of normalised latents (n, 16, height, width)."""
    own = values.to(next(vae.parameters()).device) / vae.config.scaling_factor + vae.config.shift_factor
    pictures = torch.cat([vae.decode(part).sample for part in own.split(16)]).clamp(-1, 1)
    return ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def grid(pictures: Pixels, columns: int) -> Pixels:
    """Lay pictures (n, h, w, 3) side by side, row by row, on white."""
    count, height, width = pictures.shape[:3]
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def save(picture: Pixels, file: Path) -> None:
    """Write a picture (h, w, 3) as PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(file), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise OSError(f"{file} could not be written")


class Drawer:
    """Draws a grid of the same prompts with the same noise, whenever it is called."""

    def __init__(self, vae: Path, prompts: Sequence[str] = PROMPTS) -> None:
        self._vae = AutoencoderKL.from_pretrained(vae, dtype=torch.float32).eval()
        self._prompts = list(prompts)

    def __call__(self, network: Sketch, tokenizer: PreTrainedTokenizerFast, file: Path) -> None:
        """Write the grid, four pictures a row, to a PNG file."""
        save(grid(decoded(self._vae, latents(network, tokenizer, self._prompts)), 4), file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the command line says with the best average of a run."""
    parser = argparse.ArgumentParser(
        prog="python -m training.sketch.sample", description="Draw with a trained network."
    )
    parser.add_argument("prompts", nargs="*", default=list(PROMPTS), metavar="PROMPT")
    parser.add_argument("--out", type=Path, default=OUT / "sketch/run", help="folder of the run (default: %(default)s)")
    parser.add_argument("--vae", type=Path, default=OUT / "sketch/vae", help="autoencoder (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--shift", type=float, default=SHIFT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--file", type=Path, default=None, help="PNG to write (default: OUT/sample.png)")
    given = parser.parse_args(arguments)
    network, tokenizer = best(given.out)
    drawn = latents(
        network,
        tokenizer,
        given.prompts,
        steps=given.steps,
        guidance=given.guidance,
        shift=given.shift,
        seed=given.seed,
    )
    vae = AutoencoderKL.from_pretrained(given.vae, dtype=torch.float32).eval()
    save(grid(decoded(vae, drawn), given.columns), given.file or given.out / "sample.png")


if __name__ == "__main__":
    main()
