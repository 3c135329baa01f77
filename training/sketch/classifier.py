"""Trains what judges limner-sketch: `python -m training.sketch.classifier [--minutes N] [--out DIR]`.

A small convolutional network that says which emoji a picture shows. It learns from the real scenes alone
(DIR/sketch/scenes.npy), moved, scaled, blurred and with changed light, so that a drawn picture's small faults don't
matter, and is itself measured on scenes that were drawn for that with other chances. Written is
DIR/sketch/classifier.pt, which `load` reads.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoint import Average, Budget, Checkpoint, Stateful, write
from training.device import CHOICES, device_of
from training.sketch.emoji import Pixels, Scenes, backdrops, read
from training.sketch.vae import hidden_weights, lend_gradients, tensor
from training.sources import OUT

SIDE = 64  # of what the network sees
BATCH = 64
MUON_RATE, ADAM_RATE = 0.02, 3e-3


class Residual(nn.Module):
    """Two convolutions of which the first halves the picture, the second adds (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )
        self.add = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, values: Tensor) -> Tensor:
        halved = self.down(values)
        return functional.relu(halved + self.add(halved))


class Classifier(nn.Module):
    """Scores (n, classes) of pictures (n, 3, 64, 64) in [-1, 1]."""

    def __init__(self, classes: int, widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        blocks = [Residual(before, after) for before, after in zip((3, *widths[:-1]), widths, strict=True)]
        self.blocks = nn.Sequential(*blocks)
        self.scores = nn.Linear(widths[-1] * 4, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        seen = functional.adaptive_avg_pool2d(self.blocks(pictures), 2)
        scores: Tensor = self.scores(seen.flatten(1))
        return scores


def reduced(pictures: Pixels) -> Pixels:
    """Reduce (n, h, w, 3) uint8 to (n, 64, 64, 3) by area averaging."""
    return np.stack([cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for picture in pictures])


def varied(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Move (n, 3, h, w) in [-1, 1] by up to a twelfth, scale them by up to a fifth, change light, blur some."""
    count = len(pictures)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=random)

    place = torch.zeros(count, 2, 3)
    place[:, 0, 0] = place[:, 1, 1] = between(0.85, 1.2)
    place[:, :, 2] = between(-0.17, 0.17, 2)
    there = functional.affine_grid(place, list(pictures.shape), align_corners=False)
    moved = functional.grid_sample(pictures, there, padding_mode="border", align_corners=False)
    blurred = functional.avg_pool2d(moved, 3, 1, 1, count_include_pad=False)
    mixed = torch.lerp(moved, blurred, between(-0.5, 1.0, 1, 1, 1).clamp(0, 1))
    return mixed * between(0.85, 1.15, 1, 1, 1) + between(-0.1, 0.1, 3, 1, 1)


def train(
    pictures: Pixels,
    labels: NDArray[np.int64],
    codes: Sequence[str],
    tests: tuple[Pixels, NDArray[np.int64]],
    out: Path,
    *,
    minutes: float,
    device: torch.device,
    batch: int = BATCH,
) -> tuple[float, float]:
    """Train on pictures (n, 64, 64, 3) uint8 of classes `labels`, and write the weights of the highest top-5 accuracy.

    Returns top-1 and top-5 accuracy on `tests` at the end. Goes on from `out/classifier-run.pt`. Muon and Adam share
    the work as in training.sketch.vae.
    """
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    chances = torch.Generator().manual_seed(0)
    network = Classifier(len(codes)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(network, 0.99)
    hidden = hidden_weights(network, ("blocks.0.down",))
    others = [one for one in network.parameters() if all(one is not weight for weight, _ in hidden)]
    muon = torch.optim.Muon([matrix for _, matrix in hidden], lr=MUON_RATE, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, weight_decay=0.01)
    parts: dict[str, Stateful] = {"network": network, "average": average, "muon": muon, "adam": adam}
    checkpoint = Checkpoint(out / "classifier-run.pt", parts, random)
    checkpoint.resume()
    accuracy = (0.0, 0.0)

    def judge() -> tuple[float, float]:
        result = measured(average.network, *tests)
        print(f"step {checkpoint.step} held out: top-1 {result[0]:.1%}, top-5 {result[1]:.1%}", flush=True)
        if result[1] >= checkpoint.best:
            checkpoint.best = result[1]
            written = {
                "codes": list(codes),
                "network": average.network.state_dict(),
                "top_1": result[0],
                "top_5": result[1],
            }
            write(out / "classifier.pt", written)
        return result

    with Budget(minutes) as budget:
        while budget.left():
            rate = min(1.0, (checkpoint.step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * budget.spent()))
            for optimiser, highest in ((muon, MUON_RATE), (adam, ADAM_RATE)):
                for group in optimiser.param_groups:
                    group["lr"] = rate * highest
            rows = random.integers(len(pictures), size=batch)
            given = varied(tensor(pictures[rows]), chances).to(device, memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16):
                scores = network(given)
            lost = functional.cross_entropy(
                scores.float(), torch.from_numpy(labels[rows]).to(device), label_smoothing=0.1
            )
            network.zero_grad(set_to_none=True)
            lost.backward()
            lend_gradients(hidden)
            muon.step()
            adam.step()
            average.update(network)
            checkpoint.step += 1
            if budget.due("line", 30):
                print(f"step {checkpoint.step} loss {lost.item():.3f} {budget.spent():.0%}", flush=True)
            if budget.due("score", 90):
                judge()
                checkpoint.save(budget.seconds())
        accuracy = judge()
        checkpoint.save(budget.seconds())
    return accuracy


@torch.no_grad()
def ranked(network: nn.Module, pictures: Pixels, count: int = 5) -> NDArray[np.int64]:
    """Return the likeliest `count` classes of pictures (n, h, w, 3) uint8 of any size, the first first: (n, count)."""
    device = next(network.parameters()).device
    scores = [network(tensor(reduced(pictures[at : at + 256])).to(device)) for at in range(0, len(pictures), 256)]
    return torch.cat(scores).topk(count).indices.cpu().numpy()


def measured(network: nn.Module, pictures: Pixels, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return top-1 and top-5 accuracy, 0 to 1."""
    right = ranked(network, pictures) == labels[:, None]
    return float(right[:, 0].mean()), float(right.any(axis=1).mean())


def load(file: Path) -> tuple[Classifier, list[str]]:
    """Read a trained classifier and the codes of its classes. FileNotFoundError if it isn't trained yet."""
    saved = torch.load(file, map_location="cpu", weights_only=True)
    network = Classifier(len(saved["codes"]))
    network.load_state_dict(saved["network"])
    return network.eval(), saved["codes"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.sketch.classifier", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of training.sources (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--device", choices=CHOICES, default="auto")
    given = parser.parse_args(arguments)
    device = device_of(given.device)
    folder = given.out / "sketch"
    scenes = Scenes(read(given.out), backdrops(given.out, "heldout"))
    codes = [emoji.code for emoji in scenes.emoji]
    number = {code: index for index, code in enumerate(codes)}
    shown = json.loads((folder / "scenes.json").read_text())
    rows = [row for row, scene in enumerate(shown) if scene["code"] is not None]
    labels = np.array([number[shown[row]["code"]] for row in rows])
    pictures = reduced(np.load(folder / "scenes.npy", mmap_mode="r")[rows])
    random = np.random.default_rng(1)
    tests = reduced(np.stack([scenes.draw(index, random).pixels for index in range(len(codes))]))
    train(
        pictures,
        labels,
        codes,
        (tests, np.arange(len(codes))),
        folder,
        minutes=given.minutes,
        device=device,
    )


if __name__ == "__main__":
    main()
