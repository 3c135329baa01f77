"""Holes to train with: like objects, strokes and boxes. Knows no picture."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]

SHARE = 0.38  # of a picture's side: the longest side of a hole, as the server shows it
_SMALLEST = 6.0  # pixels
_SMALL = 0.16  # holes smaller than this share of the side come in twos to fours
_ANYWHERE = 0.2  # how many lie anywhere; the others about the middle, where the server has them


def draw_holes(side: int, cells: int, random: np.random.Generator) -> Mask:
    """Return (side, side) uint8 with a hole in each of `cells` × `cells` parts: a picture teaches more so."""
    mask = np.zeros((side, side), np.uint8)
    part = side // cells
    for top, left in np.ndindex(cells, cells):
        mask[top * part : (top + 1) * part, left * part : (left + 1) * part] = draw_hole(part, random)
    return mask


def draw_hole(side: int, random: np.random.Generator) -> Mask:
    """Return (side, side) uint8, 1 in the hole, which has at least a pixel and leaves most of the picture."""
    mask = np.zeros((side, side), np.uint8)
    length = float(np.exp(random.uniform(np.log(_SMALLEST), np.log(SHARE * side))))
    if random.random() < 0.5:
        length = max(length, random.uniform(0.5, 1.0) * SHARE * side)
    count = int(random.integers(2, 5)) if length < _SMALL * side else 1
    draw = _KINDS[int(random.integers(len(_KINDS)))]
    while count or not mask.any():
        middle = random.normal(side / 2, side / 16, 2)
        if count > 1 or random.random() < _ANYWHERE:
            middle = random.uniform(0.1 * side, 0.9 * side, 2)
        draw(mask, middle, length, random)
        count = max(0, count - 1)
    return mask


def _object(mask: Mask, middle: NDArray[np.float64], length: float, random: np.random.Generator) -> None:
    """A blob with an uneven outline, longer than wide as often as not."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    outline = np.ones(48)
    for waves in (2, 3, 4, 5):
        outline += random.normal(0, 0.25 / waves) * np.sin(waves * angles + random.uniform(0, 2 * np.pi))
    points = np.maximum(outline, 0.3)[:, None] * np.stack(
        [np.cos(angles), random.uniform(0.4, 1.0) * np.sin(angles)], 1
    )
    turn = random.uniform(0, 2 * np.pi)
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points *= length / np.ptp(points, axis=0).max()
    cv2.fillPoly(mask, [np.rint(middle + points).astype(np.int32)], 1)


def _box(mask: Mask, middle: NDArray[np.float64], length: float, random: np.random.Generator) -> None:
    sides = np.array([length, length * random.uniform(0.35, 1.0)])
    if random.random() < 0.5:
        sides = sides[::-1]
    (x, y), (right, bottom) = np.rint(middle - sides / 2).astype(int), np.rint(middle + sides / 2).astype(int)
    mask[max(y, 0) : max(bottom, 1), max(x, 0) : max(right, 1)] = 1


def _stroke(mask: Mask, middle: NDArray[np.float64], length: float, random: np.random.Generator) -> None:
    """A bent line, as scratches, wires and letters are; it may leave the picture."""
    length *= 1.6
    width = int(np.clip(random.uniform(0.04, 0.22) * length, 2, 14))
    heading = random.uniform(0, 2 * np.pi) + np.cumsum(random.normal(0, random.uniform(0.05, 0.9), 9))
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), axis=0)
    points = (points - points.mean(0)) * (length / max(np.ptp(points, axis=0).max(), 1e-3))
    cv2.polylines(mask, [np.rint(middle + points).astype(np.int32)], isClosed=False, color=1, thickness=width)


_KINDS: tuple[Callable[[Mask, NDArray[np.float64], float, np.random.Generator], None], ...] = (
    _object,
    _object,
    _box,
    _stroke,
)
