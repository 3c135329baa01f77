"""Trains limner-sketch: `python -m training.sketch.train [--minutes N] [--out DIR] [--device auto|cpu|cuda]`.

First the text encoders learn alone (`training.sketch.reading`), then they and the transformer together, by rectified
flow (Liu et al., 2022) with timesteps as SD3 draws them (Esser et al., 2024), though noisier ones more often, from
latents that `training.sketch.latents` cached. Matrices within the blocks are stepped by
Muon (Keller Jordan et al., 2024), the rest by Adam. Warm-up comes first, and over the last quarter of the budget the
rates fall to nothing; a run that begins where another ended goes on with the full rate. Every few minutes the held-out
loss of the weights' moving average is measured, the best average is kept in `best.pt`, and a grid of pictures is drawn.

A run stops in order at SIGTERM and SIGINT, and goes on from `checkpoint.pt`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.checkpoint import Average, Budget, Checkpoint, write
from training.device import CHOICES, device_of
from training.sketch import reading, sample, text, transformer
from training.sketch.data import Captions, Latents
from training.sketch.network import Sizes, Sketch, best_file, prepare
from training.sources import OUT

WARM_UP = 100  # steps
FALL = 0.25  # part of the budget over which the rates fall
NOISY, SPREAD = 0.8, 1.1  # mean and deviation of the times' logits: what a thing is, is decided where noise is strong


def loss(
    sketch: Sketch,
    latents: Tensor,
    ids: Tensor,
    noise: Tensor,
    times: Tensor,
    text_length: int,
    velocity: Callable[..., Tensor] = transformer.velocity,
) -> Tensor:
    """Return the mean squared error of the velocity `noise - latents` at `times` (n,), 0 the picture, 1 the noise."""
    device = latents.device
    along = times[:, None, None, None]
    with torch.autocast(device.type, torch.bfloat16):
        read, pooled = sketch.read(ids)
        predicted = velocity(
            sketch.transformer,
            torch.lerp(latents, noise, along),
            1000 * times,
            read,
            pooled,
            text.counts(text_length).to(device),
        )
    return (predicted.float() - (noise - latents)).square().mean()


@torch.no_grad()
def held_out(sketch: Sketch, latents: Tensor, ids: Tensor, batch: int = 64) -> float:
    """Return the loss of pictures that weren't trained on, at times and with noise that are always the same."""
    count, device = len(latents), next(sketch.parameters()).device
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=generator)
    times = torch.special.ndtri((torch.arange(count) + 0.5) / count).sigmoid()[
        torch.randperm(count, generator=generator)
    ]
    total = 0.0
    for start in range(0, count, batch):
        part = slice(start, start + batch)
        own, read, added, when = (values[part].to(device) for values in (latents, ids, noise, times))
        total += float(loss(sketch, own, read, added, when, text.LONGEST)) * len(own)
    return total / count


def optimisers(sketch: Sketch, matrix_rate: float, rate: float) -> dict[str, torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices except those that modulate, and Adam for all other parameters."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in sketch.named_parameters():
        within = "transformer_blocks" in name and parameter.ndim == 2 and ".norm1" not in name
        (matrices if within else rest).append(parameter)
    return {
        "muon": torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        "adam": torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    }


def factor(step: int, spent: float) -> float:
    """Return what the rates are multiplied by: `step` counts from 0 over all runs, `spent` is a part of the budget."""
    return min(1.0, (step + 1) / WARM_UP, max(0.0, (1 - spent) / FALL))


def train(
    data: Latents,
    folder: Path,
    *,
    minutes: float,
    device: torch.device,
    sizes: Sizes,
    batch: int = 64,
    matrix_rate: float = 2e-3,
    rate: float = 1e-3,
    seed: int = 0,
    compiled: bool = False,
    draw: Callable[[Sketch, PreTrainedTokenizerFast, Path], None] | None = None,
    often: float = 600,
    steps: float = math.inf,
    reading_steps: int = reading.STEPS,
) -> Sketch:
    """Train for `minutes`, from `folder/checkpoint.pt` if it is there, and return the moving average.

    A run that begins first teaches the text encoders, for `reading_steps`. It ends after `steps`, if these are done
    before. Every `often` seconds `draw` is given the average, with the tokenizer and a file to write pictures to.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    sizes, tokenizer = prepare(folder, data.captions, sizes)
    captions = Captions(data.captions, tokenizer)
    sketch = Sketch(sizes, tokenizer).to(device).train()
    average = Average(sketch)
    averaged = average.network
    assert isinstance(averaged, Sketch)
    steppers = optimisers(sketch, matrix_rate, rate)
    checkpoint = Checkpoint(folder / "checkpoint.pt", {"network": sketch, "average": average, **steppers}, random)
    resumed = checkpoint.resume()
    if resumed:
        print(f"goes on at step {checkpoint.step} after {checkpoint.seconds / 60:.1f} minutes")
    velocity = torch.compile(transformer.velocity) if compiled else transformer.velocity
    judged = data.held_out[:256]
    judged_latents = data[judged]
    judged_ids = captions.draw(judged, np.random.default_rng(0), without=0)
    rates = {"muon": matrix_rate, "adam": rate}
    lately: list[float] = []
    first = checkpoint.step

    def look() -> None:
        score = -held_out(averaged, judged_latents, judged_ids)
        better = score > checkpoint.best
        if better:
            checkpoint.best = score
            write(best_file(folder), averaged.state_dict())
        print(f"step {checkpoint.step}: held-out loss {-score:.4f}{' (best)' if better else ''}", flush=True)
        if draw is not None:
            draw(averaged, tokenizer, folder / f"grid-{checkpoint.step:06d}.png")
        checkpoint.save(budget.seconds())

    with Budget(minutes) as budget:
        if not resumed:
            explained = reading.teach(sketch, data, captions, random, reading_steps)
            print(f"captions alone explain {explained:.1%} of the latents", flush=True)
        began = budget.spent()
        while budget.left() and checkpoint.step - first < steps:
            spent = max(budget.spent(), (checkpoint.step - first) / steps)
            for name, stepper in steppers.items():
                for group in stepper.param_groups:
                    group["lr"] = rates[name] * factor(checkpoint.step, spent)
            numbers = np.sort(random.choice(data.train, batch))  # sorted: they are read from a file
            latents = data[numbers].to(device)
            error = loss(
                sketch,
                latents,
                captions.draw(numbers, random).to(device),
                torch.randn(latents.shape).to(device),
                (NOISY + SPREAD * torch.randn(batch)).sigmoid().to(device),
                round(math.exp(random.uniform(0, math.log(text.LONGEST + 1))) - 1),
                velocity,
            )
            error.backward()
            for stepper in steppers.values():
                stepper.step()
                stepper.zero_grad()
            average.update(sketch)
            checkpoint.step += 1
            lately.append(float(error.detach()))
            if budget.due("print", 30):
                speed = (checkpoint.step - first) * batch / max(1e-9, (budget.spent() - began) * minutes * 60)
                mean = sum(lately) / len(lately)
                print(f"step {checkpoint.step}: loss {mean:.4f}, {speed:.1f} pictures/s", flush=True)
                lately.clear()
            if budget.due("look", often):
                look()
        look()
    return averaged


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m training.sketch.train", description="Train limner-sketch.")
    parser.add_argument("--minutes", type=float, default=60, help="budget of this run (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT / "sketch/run", help="folder of the run (default: %(default)s)")
    parser.add_argument(
        "--data", type=Path, default=OUT / "sketch", help="folder of the latents (default: %(default)s)"
    )
    parser.add_argument("--vae", type=Path, default=None, help="the autoencoder that draws grids (default: DATA/vae)")
    parser.add_argument("--device", choices=CHOICES, default="auto")
    parser.add_argument("--width", type=int, default=Sizes.width, help="of a run that begins (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=Sizes.layers, help="likewise (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="pictures a step (default: %(default)s)")
    parser.add_argument("--matrix-rate", type=float, default=2e-3, help="learning rate of Muon (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of Adam (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=None, help="of the CPU (default: torch's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the transformer: a minute, then a third faster")
    given = parser.parse_args(arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    device = device_of(given.device)
    vae = given.vae or given.data / "vae"
    train(
        Latents(given.data),
        given.out,
        minutes=given.minutes,
        device=device,
        sizes=Sizes(given.width, given.layers),
        batch=given.batch,
        matrix_rate=given.matrix_rate,
        rate=given.rate,
        seed=given.seed,
        compiled=given.compile,
        draw=sample.Drawer(vae) if vae.exists() else None,
    )


if __name__ == "__main__":
    main()
