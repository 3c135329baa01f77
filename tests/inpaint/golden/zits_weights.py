"""What the recipe of ZITS' golden file and its test share: weights and inputs.

Knows numpy and OpenCV only, so that the recipe can use it beside the public code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.inpaint.golden.weights import pictures, seeded

ALPHAS = {"alpha1": 0.5, "alpha2": -0.4, "alpha3": 0.6, "alpha4": -0.5, "alpha5": 0.9, "alpha6": -0.7}
"""What structure and positions count; they are zero in a network that wasn't trained, and small if drawn."""

GAINS = {
    "pos_emb": 300.0,  # one value for each of 1024 places and 256 channels, not a kernel: to about 0.8
    "query.weight": 2.0,  # so that tokens attend to some more than to others
    "convs.7.weight": 4.0,  # what logits are made of
    "rel_pos_emb.weight": 4.0,
    "direct_emb.weight": 4.0,
    "str_encoder.bnt1.weight": 3.0,  # what is gated is small
    "str_encoder.bnt2.weight": 3.0,
    "str_encoder.bnt3.weight": 6.0,
    "ffc2.bn_l.weight": 0.1,  # what a block adds; otherwise values would grow in each of the nine
    "ffc2.bn_g.weight": 0.1,
    "generator.conv1.weight": 6.0,  # so that the picture counts beside its structure
    "generator.convt4.weight": 0.1,  # what goes into the hyperbolic tangent
    "convt4.weight": 8.0,
}
"""By how a parameter's name ends; the first that fits counts."""

SHIFTS = {"convs.7.bias": -2.0, "generator.convt4.bias": 0.0, "convt4.bias": -1.0}
"""What is added to biases, so that likelihoods spread over their range."""


def zits_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Return seeded weights by name."""
    return {name: _scaled(name, values) for name, values in seeded(shapes).items()}


def _scaled(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if (last := name.rpartition(".")[2]) in ALPHAS:
        return np.asarray(ALPHAS[last], np.float32)
    gain = next((gain for end, gain in GAINS.items() if name.endswith(end)), 1.0)
    shift = next((shift for end, shift in SHIFTS.items() if name.endswith(end)), 0.0)
    return np.asarray(values * gain + shift, values.dtype)


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return a (height, width, 3) picture with edges: soft waves, a frame, a disc and bars over them."""
    smooth = np.rint(np.moveaxis(pictures(1, height, width, seed)[0], 0, 2) * 120).astype(np.uint8) + 60
    canvas = np.ascontiguousarray(smooth)
    cv2.rectangle(canvas, (width // 8, height // 6), (width * 5 // 8, height * 7 // 8), (230, 60, 40), -1)
    cv2.circle(canvas, (width * 2 // 3, height // 2), min(height, width) // 4, (30, 200, 220), -1)
    for left in range(width // 10, width, width // 5):
        cv2.line(canvas, (left, 0), (left + width // 9, height - 1), (15, 20, 25), max(2, width // 60))
    return canvas


def scratch(height: int, width: int) -> NDArray[np.bool_]:
    """Return a (height, width) hole: a box, a slanted stroke and a disc that reaches over the lower right corner."""
    hole = np.zeros((height, width), np.uint8)
    cv2.rectangle(hole, (width // 4, height // 3), (width * 3 // 5, height * 2 // 3), 1, -1)
    cv2.line(hole, (width // 12, height * 9 // 10), (width * 9 // 10, height // 12), 1, max(3, width // 40))
    cv2.circle(hole, (width - 1, height - 1), min(height, width) // 5, 1, -1)
    return hole > 0


def position_holes() -> dict[str, NDArray[np.bool_]]:
    """Return holes of several sizes; one leaves three columns alone, and is deeper than positions are told apart."""
    deep = np.repeat(np.arange(320)[None] >= 3, 240, axis=0)
    shapes = {"same": (256, 256), "larger": (320, 320), "wide": (200, 300), "tall": (640, 512)}
    return {name: scratch(*shape) for name, shape in shapes.items()} | {"deep": deep}


SEGMENTS = np.array([[0.1, 0.15, 0.9, 0.35], [0.3, 0.95, 0.45, 0.05], [0.6, 0.2, 0.62, 0.8], [0.2, 0.5, 0.8, 0.5]])
"""Lines as the wireframe network gives them: x0, y0, x1, y1 over the picture's sides. The last one is unsure."""

SCORES = np.array([0.99, 0.9, 0.86, 0.84])


def drawings(count: int, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Return (count, 1, height, width) smooth maps in [0, 1], for edges or lines."""
    return pictures(count, height, width, seed)[:, :1]


def logits(count: int, side: int, seed: int) -> NDArray[np.float32]:
    """Return (count, 1, side, side) answers, smooth and between -4 and 4."""
    return drawings(count, side, side, seed) * 8 - 4
