"""Trains `limner-erase`: `python -m training.erase.train --minutes 90`. Stop it at any time; it goes on from there.

The loss is what is measured: the logarithm of the mean squared error in the hole, so that a hole counts the same in a
soft sky and in a meadow, averaged over pictures. Every few minutes the averaged weights are scored on photographs that
are never learnt from, always with the same holes, and the best are kept in best.pt.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from training.checkpoint import Average, Budget, Checkpoint, Stateful, write
from training.device import CHOICES, device_of
from training.erase.holes import draw_holes
from training.erase.network import ErasingLama, smooth_fill
from training.erase.pictures import Pictures
from training.photographs import load
from training.sources import OUT

SIDE = 96
BATCH = 8
RATE = 1e-3
CELLS = 48  # pixels, or more: of the parts of a picture that have a hole each. Every other picture has one hole
WARM_UP = 200  # steps
ENDS_AT = 0.03  # of the rate: what is left of it when the budget ends
NOISE = 3e-4  # squared error that hardly matters: what is better than 35 dB is good enough
HELD_OUT = 192  # pictures to score with
SAVE_SECONDS, SCORE_SECONDS, TELL_SECONDS = 180, 300, 30


class Batch(NamedTuple):
    image: Tensor  # (n, 3, side, side) float32 in [0, 1]
    mask: Tensor  # (n, 1, side, side) float32, 1 in the hole

    def to(self, device: torch.device) -> Batch:
        return Batch(self.image.to(device), self.mask.to(device))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.erase.train", description=__doc__)
    parser.add_argument("--minutes", type=float, default=90, help="of this run; the rate falls until then")
    parser.add_argument("--out", type=Path, default=OUT / "erase", help="where checkpoints go (default: %(default)s)")
    parser.add_argument("--sources", type=Path, default=OUT, help="where the packages are (default: %(default)s)")
    parser.add_argument("--device", choices=CHOICES, default="auto")
    parser.add_argument(
        "--side",
        type=int,
        default=SIDE,
        help="of the pictures, a multiple of 8; scores of different sides can't be compared",
    )
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rate", type=float, default=RATE)
    asked = parser.parse_args(arguments)
    device = device_of(asked.device)
    pictures = Pictures(load(asked.sources, "train"))
    held_out = draw(Pictures(load(asked.sources, "heldout")), HELD_OUT, asked.side, np.random.default_rng(1))
    train(pictures, held_out, asked.out, asked.minutes, device, side=asked.side, batch=asked.batch, rate=asked.rate)


def train(
    pictures: Pictures,
    held_out: Batch,
    out: Path,
    minutes: float,
    device: torch.device,
    *,
    side: int = SIDE,
    batch: int = BATCH,
    rate: float = RATE,
) -> None:
    """Train for `minutes`, from the checkpoint in `out` if there is one. Leaves checkpoint.pt and best.pt there."""
    torch.manual_seed(0)
    network = ErasingLama().to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which the stubs lack
    optimiser = torch.optim.AdamW(network.parameters(), rate, betas=(0.9, 0.98), weight_decay=1e-3)
    average = Average(network, decay=0.998)
    parts: dict[str, Stateful] = {"network": network, "optimiser": optimiser, "average": average}
    checkpoint = Checkpoint(out / "checkpoint.pt", parts, np.random.default_rng(0))
    resumed = checkpoint.resume()
    first = checkpoint.step
    print(
        f"{'resumed at' if resumed else 'begins at'} step {first}, {count(network) / 1e6:.2f} M parameters", flush=True
    )
    if resumed:
        checkpoint.best = score_of_best(out, held_out, device)
    base = psnr(smooth_fill(*held_out), held_out).mean().item()
    losses: list[float] = []
    told = time.monotonic()
    with Budget(minutes) as budget:
        while budget.left():
            for group in optimiser.param_groups:
                group["lr"] = rate * schedule(checkpoint.step - first, budget.spent())
            drawn = draw(pictures, batch, side, checkpoint.random, several=True).to(device)
            losses.append(step(network, optimiser, drawn))
            average.update(network)
            checkpoint.step += 1
            if budget.due("tell", TELL_SECONDS):
                pace = len(losses) * batch / (time.monotonic() - told)
                told = time.monotonic()
                print(
                    f"step {checkpoint.step} ({checkpoint.step * batch} pictures, {pace:.1f} a second): "
                    f"{-10 / math.log(10) * float(np.mean(losses)):+.3f} dB over the smooth fill",
                    flush=True,
                )
                losses.clear()
            if budget.due("score", SCORE_SECONDS):
                keep_best(average, held_out, checkpoint, out, base)
            if budget.due("save", SAVE_SECONDS):
                checkpoint.save(budget.seconds())
        keep_best(average, held_out, checkpoint, out, base)
        checkpoint.save(budget.seconds())


def step(network: ErasingLama, optimiser: torch.optim.Optimizer, batch: Batch) -> float:
    """Go one step, and return the mean logarithm of the error, less that of the smooth fill."""
    network.train()
    with torch.no_grad():
        smooth = smooth_fill(*batch)
    with torch.autocast(batch.image.device.type, torch.bfloat16):
        filled = network.corrected(smooth, batch.mask)
    error = squared_error(filled.float(), batch)
    loss = torch.log(error + NOISE).mean()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()
    return (loss.detach() - torch.log(squared_error(smooth, batch) + NOISE).mean()).item()


def draw(pictures: Pictures, count: int, side: int, random: np.random.Generator, *, several: bool = False) -> Batch:
    """Return so many pictures with a hole each; every other one has several, if they may."""
    pixels = np.stack([pictures.draw(side, random) for _ in range(count)])
    cells = max(1, side // CELLS) if several else 1
    masks = np.stack([draw_holes(side, cells if index % 2 else 1, random) for index in range(count)])
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return Batch(image.contiguous(), torch.from_numpy(masks)[:, None].float())


def squared_error(filled: Tensor, batch: Batch) -> Tensor:
    """Return each picture's mean squared error in its hole, (n,)."""
    total = ((filled - batch.image).square() * batch.mask).sum((1, 2, 3))
    return total / (3 * batch.mask.sum((1, 2, 3)))


def psnr(filled: Tensor, batch: Batch) -> Tensor:
    """Return each picture's PSNR in its hole, (n,), in dB."""
    return -10 * torch.log10(squared_error(filled.clamp(0, 1), batch) + 1e-6)


@torch.no_grad()
def score(network: nn.Module, held_out: Batch) -> float:
    """Return the mean PSNR in the holes of pictures that are not learnt from, in dB, in float32."""
    device = next(network.parameters()).device
    found = []
    for start in range(0, len(held_out.image), 16):
        part = Batch(held_out.image[start : start + 16], held_out.mask[start : start + 16]).to(device)
        found.append(psnr(network(*part), part))
    return torch.cat(found).mean().item()


def keep_best(average: Average, held_out: Batch, checkpoint: Checkpoint, out: Path, base: float) -> None:
    """Score the averaged weights, and write them to best.pt if none were better."""
    now = score(average.network, held_out)
    print(f"step {checkpoint.step}: held out {now:.3f} dB, the smooth fill {base:.3f}", flush=True)
    if now > checkpoint.best:
        checkpoint.best = now
        write(out / "best.pt", {"network": average.network.state_dict(), "psnr": now, "step": checkpoint.step})


def score_of_best(out: Path, held_out: Batch, device: torch.device) -> float:
    """Score the best weights again: the held-out pictures may be others than those that they were the best at."""
    if not (out / "best.pt").exists():
        return float("-inf")
    network = ErasingLama()
    network.load_state_dict(torch.load(out / "best.pt", map_location="cpu", weights_only=True)["network"])
    return score(network.to(device).eval(), held_out)


def schedule(step: int, spent: float) -> float:
    """Return the share of the rate: up over WARM_UP steps, then down along a cosine while the budget is `spent`."""
    fall = ENDS_AT + (1 - ENDS_AT) * 0.5 * (1 + math.cos(math.pi * spent))
    return min(1.0, (step + 1) / WARM_UP) * fall


def count(network: nn.Module) -> int:
    """Return how many parameters a network has."""
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
