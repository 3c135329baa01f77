"""Trains limner-sketch's autoencoder: `python -m training.sketch.vae [--minutes N] [--out DIR]`,
after training.sketch.emoji.

It is diffusers' AutoencoderKL as SD3 has it (16 channels, reduced by 8, no quantisation convolutions), narrow and
without attention. Learned are L1 at three scales and on gradients, and a Kullback-Leibler term that lets the latents
have noise (Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022), without an adversary.
A part of the latents is averaged by 2 and must decode to the picture reduced by 2, which makes them smoother and so
easier to generate (Kouzelis et al., "EQ-VAE: Equivariance Regularized Latent Space for Improved Generative Image
Modeling", 2025).

With `--decoder` the encoder stays as it is: latents that were cached with it remain valid.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoint import Average, Budget, Checkpoint
from training.device import CHOICES, device_of
from training.sketch.emoji import SIDE, Backdrop, Emoji, Pixels, Scenes, backdrops, read
from training.sources import OUT

WIDTHS = (16, 32, 64, 128)
KL = 3e-4  # weight of the mean over the latents' elements, against L1 in [-1, 1]
REDUCED = 0.2  # part of the steps whose latents are averaged by 2


def network(widths: Sequence[int] = WIDTHS) -> AutoencoderKL:
    """Build the autoencoder with random weights. It takes and gives (n, 3, h, w) in [-1, 1], sides multiples of 8."""
    levels = len(widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(widths),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def loss(vae: AutoencoderKL, pictures: Tensor, *, reduced: bool = False) -> Tensor:
    """Return the loss of pictures (n, 3, h, w) in [-1, 1]; with `reduced`, of their latents averaged by 2."""
    posterior = vae.encode(pictures).latent_dist
    latents = posterior.sample()
    if reduced:
        latents, pictures = functional.avg_pool2d(latents, 2), functional.avg_pool2d(pictures, 2)
    error = vae.decode(latents).sample.float() - pictures
    total = _l1(error) + 0.5 * (_l1(error.diff(dim=2)) + _l1(error.diff(dim=3)))
    for _ in range(2):
        error = functional.avg_pool2d(error, 2)
        total = total + 0.5 * _l1(error)
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    return total + KL * 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()


def _l1(error: Tensor) -> Tensor:
    return error.abs().mean()


class Pictures:
    """Training pictures: parts of scenes (rows of `drawn`, (n, 128, 128, 3) uint8) and of photographs."""

    def __init__(self, drawn: Pixels, rows: Sequence[int], photos: Sequence[Backdrop]) -> None:
        self._drawn = drawn
        self._rows = list(rows)
        self._photographs = Scenes([], photos)

    def batch(self, count: int, side: int, random: np.random.Generator) -> Tensor:
        """Return (count, 3, side, side) float32 in [-1, 1]; three of ten are of photographs, if there are any."""
        parts = []
        for _ in range(count):
            if self._photographs.backdrops and random.random() < 0.3:
                picture = self._photographs.photograph(random).pixels
            else:
                picture = self._drawn[self._rows[int(random.integers(len(self._rows)))]]
            top, left = random.integers(SIDE - side + 1, size=2)
            parts.append(picture[top : top + side, left : left + side])
        return tensor(np.stack(parts))


def tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """Convert (n, h, w, 3) uint8 to (n, 3, h, w) float32 in [-1, 1], with channels last in memory."""
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5) - 1


def pixels(pictures: Tensor) -> NDArray[np.uint8]:
    """Convert (n, 3, h, w) in [-1, 1] to (n, h, w, 3) uint8; beyond is clipped."""
    scaled = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy())


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, pictures: Pixels, batch: int = 16) -> Pixels:
    """Encode and decode (n, h, w, 3) uint8, with the latents' means."""
    device = next(vae.parameters()).device
    parts = []
    for start in range(0, len(pictures), batch):
        latents = vae.encode(tensor(pictures[start : start + batch]).to(device)).latent_dist.mode()
        parts.append(pixels(vae.decode(latents).sample))
    return np.concatenate(parts)


def psnr(first: Pixels, second: Pixels) -> float:
    """Return the mean peak signal-to-noise ratio in dB of (n, h, w, 3) uint8 pictures."""
    error = ((first.astype(np.float64) - second) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-3))))


def unseen(code: str | None) -> bool:
    """Say whether the autoencoder doesn't learn from the emoji of this code: one in twenty-five."""
    return code is not None and zlib.crc32(code.encode()) % 25 == 0


def held_out(emoji: Sequence[Emoji], photos: Sequence[Backdrop]) -> tuple[Pixels, Pixels]:
    """Return the pictures that the autoencoder is judged by: scenes of unseen emoji and parts of unseen photographs."""
    random = np.random.default_rng(1)
    scenes = Scenes([one for one in emoji if unseen(one.code)], photos)
    drawn = [scenes.draw(index % len(scenes.emoji), random).pixels for index in range(48)]
    parts = [scenes.photograph(random).pixels for _ in range(48)] if photos else drawn
    return np.stack(drawn), np.stack(parts)


def measured(vae: AutoencoderKL, batches: Iterator[Tensor]) -> tuple[float, float]:
    """Return (shift, scale) such that (latents - shift) * scale has mean 0 and variance 1."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(pictures).latent_dist.mode().float().flatten() for pictures in batches])
    return float(latents.mean()), float(1 / latents.std())


def write(vae: AutoencoderKL, folder: Path) -> None:
    """Write a diffusers folder with weights of 16 bits. The network itself is left in 32."""
    copy = network(vae.config.block_out_channels)
    copy.register_to_config(scaling_factor=vae.config.scaling_factor, shift_factor=vae.config.shift_factor)
    copy.load_state_dict(vae.state_dict())
    copy.half().save_pretrained(folder)


def grid(rows: Sequence[Pixels]) -> Pixels:
    """Lay rows of pictures, each (n, h, w, 3), out as one picture."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


def save_png(path: Path, picture: Pixels) -> None:
    cv2.imwrite(str(path), picture[..., ::-1])


def hidden_weights(network: nn.Module, ends: tuple[str, ...]) -> list[tuple[Tensor, Tensor]]:
    """Return what convolutions between hidden layers learn, each with itself as a matrix (outputs, inputs).

    Layers whose names begin with one of `ends` aren't hidden. The network's memory format must be channels last: then
    both share their memory, and what changes one changes the other.
    """
    weights = [weight for name, weight in network.named_parameters() if weight.ndim == 4 and not name.startswith(ends)]
    return [(weight, weight.detach().permute(0, 2, 3, 1).flatten(1)) for weight in weights]


def lend_gradients(hidden: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Give the matrices of `hidden_weights` the gradients of their weights."""
    for weight, matrix in hidden:
        matrix.grad = None if weight.grad is None else weight.grad.permute(0, 2, 3, 1).flatten(1)


def train(
    pictures: Pictures,
    judged: tuple[Pixels, Pixels],
    out: Path,
    *,
    minutes: float,
    device: torch.device,
    batch: int = 8,
    decoder_only: bool = False,
    widths: Sequence[int] = WIDTHS,
) -> None:
    """Train for so many minutes, going on from `out/vae.pt` if it is there, and write the best to `out/vae`.

    `judged` is what `held_out` returns. The last quarter is trained on whole pictures of 128², what goes before on
    parts of 64², which gives more steps; the rates fall as a cosine over the budget. Hidden weights are learnt with
    Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024), which needs fewer steps than
    Adam.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    vae = network(widths).to(device, memory_format=torch.channels_last)
    average = Average(vae, 0.998)
    hidden = hidden_weights(vae, ("encoder.conv_in", "decoder.conv_out"))
    others = [one for one in vae.parameters() if all(one is not weight for weight, _ in hidden)]
    muon = torch.optim.Muon([matrix for _, matrix in hidden], lr=0.02, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0)
    checkpoint = Checkpoint(out / "vae.pt", {"vae": vae, "average": average, "muon": muon, "adam": adam}, random)
    if checkpoint.resume():
        print(f"goes on at step {checkpoint.step}, best {checkpoint.best:.2f} dB", flush=True)
    if decoder_only:
        vae.load_state_dict(average.network.state_dict())  # whose encoder made the latents
    for name, parameter in vae.named_parameters():  # the optimisers leave alone what has no gradient
        parameter.requires_grad_(name.startswith("decoder") or not decoder_only)
    step_loss = torch.compile(loss) if device.type == "cuda" else loss
    losses: list[float] = []
    began = checkpoint.step
    with Budget(minutes) as budget:
        while budget.left():
            whole = budget.spent() > 0.75
            warm = min(1.0, (checkpoint.step - began + 1) / 50)
            rate = warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * budget.spent())))
            for optimiser, highest in ((muon, 0.02), (adam, 2e-3)):
                for group in optimiser.param_groups:
                    group["lr"] = rate * highest
            side, count = (SIDE, max(1, batch // 4)) if whole else (SIDE // 2, batch)
            given = pictures.batch(count, side, random).to(device)
            reduced = random.random() < REDUCED
            with torch.autocast(device.type, torch.bfloat16):
                value = step_loss(vae, given, reduced=reduced)
            vae.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            lend_gradients(hidden)
            muon.step()
            adam.step()
            average.update(vae)
            checkpoint.step += 1
            losses.append(value.item())
            if budget.due("line", 30):
                print(f"step {checkpoint.step} loss {np.mean(losses):.4f} {budget.spent():.0%}", flush=True)
                losses.clear()
            if budget.due("score", 150):
                _keep_best(average.network, checkpoint, judged, pictures, out, decoder_only=decoder_only)
                checkpoint.save(budget.seconds())
        _keep_best(average.network, checkpoint, judged, pictures, out, decoder_only=decoder_only)
        checkpoint.save(budget.seconds())


def _keep_best(
    vae: AutoencoderKL,
    checkpoint: Checkpoint,
    judged: tuple[Pixels, Pixels],
    pictures: Pictures,
    out: Path,
    *,
    decoder_only: bool,
) -> None:
    """Judge the averaged weights, and write them if none were better. With the decoder alone, the latents keep the
    shift and the scale that they were cached with."""
    emoji, photos = (reconstructed(vae, shown) for shown in judged)
    scores = {"emoji": psnr(emoji, judged[0]), "photographs": psnr(photos, judged[1])}
    score = (scores["emoji"] + scores["photographs"]) / 2
    print(
        f"step {checkpoint.step} held out: {scores['emoji']:.2f} dB emoji, {scores['photographs']:.2f} dB photographs"
    )
    if score <= checkpoint.best:
        return
    checkpoint.best = score
    if decoder_only:
        config = json.loads((out / "vae" / "config.json").read_text())
        shift, scale = config["shift_factor"], config["scaling_factor"]
    else:
        random = np.random.default_rng(2)
        device = next(vae.parameters()).device
        shift, scale = measured(vae, (pictures.batch(8, SIDE, random).to(device) for _ in range(4)))
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    write(vae, out / "vae")
    (out / "vae.json").write_text(json.dumps({"step": checkpoint.step, "psnr": scores, "shift": shift, "scale": scale}))
    save_png(out / "vae.png", grid([judged[0][:12], emoji[:12], judged[1][:12], photos[:12]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="where the packages are (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--device", choices=CHOICES, default="auto")
    parser.add_argument("--decoder", action="store_true", help="train the decoder alone")
    given = parser.parse_args()
    device = device_of(given.device)
    out = given.out / "sketch"
    shown = json.loads((out / "scenes.json").read_text())
    rows = [row for row, scene in enumerate(shown) if not unseen(scene["code"])]
    pictures = Pictures(np.load(out / "scenes.npy", mmap_mode="r"), rows, backdrops(given.out, "train"))
    judged = held_out(read(given.out), backdrops(given.out, "heldout"))
    train(pictures, judged, out, minutes=given.minutes, device=device, decoder_only=given.decoder)


if __name__ == "__main__":
    main()
