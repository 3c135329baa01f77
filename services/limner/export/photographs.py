"""Photographs with holes in them, for calibrating precisions and for measuring them. Knows no network.

The photographs are in the package; photographs/README.md says whose they are.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CALIBRATION = ("coffee", "rocket", "gravel")
HELD_OUT = ("astronaut", "chelsea")

Example = dict[str, NDArray[np.float32]]
"""`image` (1, 3, side, side), RGB in [0, 1], and `mask` (1, 1, side, side) in {0, 1}, 1 where it is to be filled."""


def examples(names: tuple[str, ...], side: int) -> list[Example]:
    """Return each photograph twice, scaled to `side`: with strokes through it, and with an object's shape cut out."""
    found = []
    for seed, name in enumerate(names):
        image = _photograph(name, side)
        for hole in (_strokes(side, seed), _blob(side, seed)):
            found.append({"image": image, "mask": hole[None, None].astype(np.float32)})
    return found


def _photograph(name: str, side: int) -> NDArray[np.float32]:
    with (resources.files("limner.export") / "photographs" / f"{name}.jpg").open("rb") as file:
        picture = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BOX)
    return np.ascontiguousarray(np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / np.float32(255))


def _strokes(side: int, seed: int) -> NDArray[np.bool_]:
    """Five straight strokes, a fifteenth of the side thick, about a quarter of the picture."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    hole = np.zeros((side, side), np.bool_)
    for _ in range(5):
        (x0, y0), (x1, y1) = random.uniform(0.1, 0.9, (2, 2))
        along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
        along = np.clip(along, 0, 1)
        hole |= np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)) < 1 / 30
    return hole


def _blob(side: int, seed: int) -> NDArray[np.bool_]:
    """One shape with a wavy rim near the middle, about a tenth of the picture."""
    random = np.random.default_rng(100 + seed)
    y, x = np.mgrid[:side, :side] / side - random.uniform(0.4, 0.6, (2, 1, 1))
    angle = np.arctan2(y, x)
    waves = sum(0.1 * np.cos(count * angle + random.uniform(0, 2 * np.pi)) for count in (2, 3, 5))
    return np.asarray(np.hypot(x, y) < 0.18 * (1 + waves), np.bool_)
