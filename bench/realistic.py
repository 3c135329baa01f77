"""Weights for LaMa whose outputs look somewhat like photographs, made here from nothing but a seed and photographs.

Random weights hide what a precision costs: their outputs are grey, or black and white, where errors vanish. Here every
norm gets the statistics of photographs, and the last convolution is solved for, so that outputs resemble the
photographs around and in the holes. No training: a hole is filled with what the random layers spread into it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from limner.export.networks.lama import Lama

ASSETS = Path(__file__).parent.parent / "assets"
SAMPLES = 9000  # pixels that the last convolution is solved for; it has 3137 unknowns a channel
ADDED = 0.2  # times what is there, in each of the 18 blocks: random blocks would drown the picture
RIDGE = 1.0  # of the features' mean square: keeps it from using what rounding would wash out


def photographs(side: int, *, held_out: bool = False) -> NDArray[np.float32]:
    """Return (4, 3, side, side) in [0, 1]: the photographs' middles, scaled. The held-out four are others."""
    fitted = [skimage.data.astronaut(), skimage.data.coffee(), _asset("nuthatch.jpg"), skimage.data.rocket()]
    others = [skimage.data.chelsea(), _asset("demo.jpg"), _asset("ladybird.jpg"), skimage.data.stereo_motorcycle()[0]]
    squares = [_square(picture, side) for picture in (others if held_out else fitted)]
    return np.stack(squares).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


def holes(count: int, side: int) -> NDArray[np.float32]:
    """Return (count, 1, side, side) of 0 and 1: an ellipse a third of the side wide, elsewhere in each."""
    y, x = np.mgrid[:side, :side] / side
    centres = np.random.default_rng(3).uniform(0.35, 0.65, (count, 2, 1, 1))
    reach = ((y - centres[:, 0]) / 0.12) ** 2 + ((x - centres[:, 1]) / 0.17) ** 2
    mask: NDArray[np.float32] = (reach < 1).astype(np.float32)[:, None]
    return mask


def realistic_lama(side: int = 192) -> dict[str, Tensor]:
    """Return a state dict of `Lama`. `side` is that of the photographs it is fitted to. Takes some seconds."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        lama = Lama()
        pictures, masks = torch.from_numpy(photographs(side)), torch.from_numpy(holes(4, side))
        features = _take_statistics(lama, torch.cat([pictures * (1 - masks), masks], 1))
        _solve_last(lama, features, pictures)
    return lama.state_dict()


def _take_statistics(lama: Lama, seen: Tensor) -> Tensor:
    """Give every norm the mean and variance of what reaches it. Return what reaches the last convolution."""
    for name, norm in lama.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0  # the statistics are those of the last batch alone
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
            if "conv2.bn" in name:  # what a block adds
                norm.weight.mul_(ADDED)
                norm.bias.mul_(ADDED)
    features: list[Tensor] = []
    with lama.generator.model[-2].register_forward_pre_hook(lambda _, inputs: features.append(inputs[0])):
        lama.train()(seen)
    return features[0]


def _solve_last(lama: Lama, features: Tensor, pictures: Tensor) -> None:
    """Solve the last convolution by ridge regression, for the logits of the pictures."""
    patches = features.unfold(2, 7, 1).unfold(3, 7, 1)  # (n, 64, side, side, 7, 7), a view
    which, row, column = (torch.randint(0, patches.shape[axis], (SAMPLES,)) for axis in (0, 2, 3))
    known = patches[which, :, row, column].reshape(SAMPLES, -1)
    wanted = torch.logit(pictures[which, :, row, column].clamp(0.02, 0.98))
    known_mean, wanted_mean = known.mean(0), wanted.mean(0)
    known, wanted = known - known_mean, wanted - wanted_mean
    square = known.T @ known
    square.diagonal().add_(RIDGE * square.diagonal().mean())
    solved = torch.linalg.solve(square, known.T @ wanted).T
    last = lama.generator.model[-2]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.weight.copy_(solved.reshape(last.weight.shape))
    last.bias.copy_(wanted_mean - solved @ known_mean)


def _asset(name: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(ASSETS / name).convert("RGB"))


def _square(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    middle = Image.fromarray(picture[top : top + least, left : left + least])
    return np.asarray(middle.resize((side, side), Image.Resampling.LANCZOS))
