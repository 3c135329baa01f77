"""Pictures to train with: crops of photographs at many scales. Knows no hole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

LONGEST, SHORTEST = 1600, 320  # longer sides of the scales that crops are cut from
_RATIO = 1.35  # from one scale to the next
EVEN = 10.0  # grey values: the middle of a crop that varies by less teaches nothing but blending


class Pictures:
    """Pictures(photographs).draw(128, random)    # (128, 128, 3) uint8"""

    def __init__(self, photographs: Sequence[Pixels]) -> None:
        """Take (h, w, 3) uint8 photographs, and reduce them to all scales."""
        self._scales = [list(scales(photograph)) for photograph in photographs]

    def draw(self, side: int, random: np.random.Generator) -> Pixels:
        """Return a picture (side, side, 3) uint8, turned and coloured by chance."""
        return _varied(self._crop(side, random), random)

    def _crop(self, side: int, random: np.random.Generator) -> Pixels:
        """Return a crop of any photograph at any scale that is large enough; an even one is drawn again, mostly."""
        for _ in range(6):
            photograph = self._scales[int(random.integers(len(self._scales)))]
            large = [scale for scale in photograph if min(scale.shape[:2]) >= side]
            scale = large[int(random.integers(len(large)))] if large else photograph[0]
            crop = _cut(scale, side, random)
            if _middle(crop).std() > EVEN or random.random() < 0.1:
                break
        return crop


def scales(photograph: Pixels) -> Iterator[Pixels]:
    """Yield a photograph reduced to longer sides from LONGEST, or its own, down to SHORTEST."""
    length = float(min(LONGEST, max(photograph.shape[:2])))
    while length >= SHORTEST:
        factor = length / max(photograph.shape[:2])
        size = (round(photograph.shape[1] * factor), round(photograph.shape[0] * factor))
        yield np.asarray(cv2.resize(photograph, size, interpolation=cv2.INTER_AREA), np.uint8)
        length /= _RATIO


def _cut(picture: Pixels, side: int, random: np.random.Generator) -> Pixels:
    height, width = picture.shape[:2]
    if min(height, width) < side:
        factor = side / min(height, width)
        size = (max(side, round(width * factor)), max(side, round(height * factor)))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), np.uint8)
        height, width = picture.shape[:2]
    y, x = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    return picture[y : y + side, x : x + side]


def _middle(picture: Pixels) -> Pixels:
    """Return the half in the middle."""
    quarter = picture.shape[0] // 4
    return picture[quarter:-quarter, quarter:-quarter]


def _varied(picture: Pixels, random: np.random.Generator) -> Pixels:
    """Return a picture mirrored, turned by right angles, and lit and coloured a little differently."""
    picture = np.rot90(picture, int(random.integers(4)))
    if random.random() < 0.5:
        picture = picture[:, ::-1]
    if random.random() < 0.3:
        picture = picture[:, :, random.permutation(3)]
    gain = random.uniform(0.75, 1.15) * random.uniform(0.92, 1.08, 3)
    levels = np.arange(256)[:, None] / 255.0
    table = np.clip(gain * levels ** random.uniform(0.85, 1.2), 0, 1) * 255
    return np.ascontiguousarray(np.rint(table).astype(np.uint8)[picture, np.arange(3)])
