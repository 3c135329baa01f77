"""What the recipe of MAT's golden file and its test share: weights, inputs and the draw that is fixed.

Knows numpy only, so that a recipe can use it beside the public code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.inpaint.golden.weights import pictures, seeded

SIZE = 512
LATENT = 512

CONSTANTS = ("resample_filter", "attn_mask", "w_avg")
"""Last parts of the names of buffers that no seed may touch: blur kernels, window masks, and a mean never read."""

MAPPING_RATE = 0.01
"""The mapping network multiplies its stored weights and biases by this."""

QUERY_KEY_GAIN = 16
"""Queries and keys come from tokens of length one: without a gain every softmax is flat and proves nothing."""

RGB_GAIN = 0.25
"""Nothing normalises what the pictures are made of; this keeps them at about [-1, 1]."""


def mat_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Return seeded weights for every name but the constants', in the size that MAT's layers expect.

    The layers divide their weights by the root of the number of inputs (Karras et al., 2018), so kernels and matrices
    get unit variance here; what makes a style is about one.
    """
    trained = {name: shape for name, shape in shapes.items() if name.rpartition(".")[2] not in CONSTANTS}
    return {name: _scaled(name, values) for name, values in seeded(trained).items()}


def _scaled(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim >= 2:
        values = values * np.float32((prod(values.shape[1:]) / 2) ** 0.5)
    if name.startswith("mapping."):
        return values / np.float32(MAPPING_RATE)
    if name.endswith("affine.bias"):
        return values + np.float32(1)
    if name.endswith(("attn.q.weight", "attn.k.weight")):
        return values * np.float32(QUERY_KEY_GAIN)
    if name.endswith("toRGB.conv.weight"):
        return values * np.float32(RGB_GAIN)
    return values


@dataclass(frozen=True)
class Case:
    """Inputs, float32: image (n, 3, 512, 512) in [0, 1], mask (n, 1, 512, 512) with 1 = hole, latent (n, 512)."""

    image: NDArray[np.float32]
    mask: NDArray[np.float32]
    latent: NDArray[np.float32]


def cases() -> dict[str, Case]:
    """Return one picture with a box and the usual latent, and two with irregular holes and two latents."""
    other = np.random.RandomState(7).randn(1, LATENT).astype(np.float32)
    holes = np.stack([_box(), _blobs(2, 0.5), _blobs(3, 0.25) | _strokes()])[:, None].astype(np.float32)
    image = pictures(3, SIZE, SIZE)
    return {
        "box": Case(image[:1], holes[:1], usual_latent()),
        "irregular": Case(image[1:], holes[1:], np.concatenate([usual_latent(), other])),
    }


def usual_latent() -> NDArray[np.float32]:
    """Return the latent that IOPaint draws once and uses for every picture, (1, 512)."""
    return np.random.RandomState(240).randn(1, LATENT).astype(np.float32)


def kept() -> dict[tuple[int, ...], NDArray[np.float32]]:
    """Return by shape the two maps, of 0 and 1, that stand for what the original draws anew at every call.

    1 keeps the picture's feature, 0 takes the latent's: 256 tokens of 180 channels, and 512 channels of 16².
    """
    return {
        shape: (np.random.RandomState(seed).random_sample(shape) < 0.5).astype(np.float32)
        for seed, shape in ((241, (256, 180)), (242, (512, 16, 16)))
    }


def _box() -> NDArray[np.bool_]:
    hole = np.zeros((SIZE, SIZE), np.bool_)
    hole[101:390, 150:431] = True
    return hole


def _blobs(seed: int, share: float) -> NDArray[np.bool_]:
    """Return as holes the lower `share` of a random landscape."""
    knots, at = np.arange(9), np.linspace(0, 8, SIZE)
    land = np.random.default_rng(seed).standard_normal((9, 9))
    for _ in range(2):
        land = np.stack([np.interp(at, knots, line) for line in land.T])
    return np.asarray(land < np.quantile(land, share), np.bool_)


def _strokes() -> NDArray[np.bool_]:
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.asarray((abs(y - x // 2 - 40) < 9) | (abs(y + x - 600) < 5) | (x > 500), np.bool_)
