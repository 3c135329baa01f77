"""Fills holes with a network that takes pictures and masks and gives pictures. Knows no particular network.

The network's inputs are `image`, float32 (n, 3, height, width) RGB in [0, 1], and `mask`, float32 (n, 1, height, width)
of 0 and 1, 1 in the hole; its first output is like `image`, and may leave [0, 1]. What it does with `image` in the hole
is its own affair: it must not look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from limner.core.picture import Pixels, eight_bits
from limner.engine.session import Session
from limner.inpaint.depth import fill_in_eight_bits
from limner.inpaint.filler import Options, Part

_WARM_UP_SIDE = 256


class ImageMaskFiller:
    """ImageMaskFiller(session, multiple=8)    # sides are filled up to multiples of 8
    ImageMaskFiller(session, square=512)    # to 512 × 512, which no part may exceed

    They are filled up at the right and at the bottom, by reflection. Not for two threads at once.
    """

    def __init__(self, session: Session, *, multiple: int = 1, least: int = 1, square: int = 0) -> None:
        self._session = session
        self._multiple = square or multiple
        self._least = square or least

    def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Pixels]:
        height, width = parts[0].hole.shape
        beyond = (0, 0), (0, self._side(height) - height), (0, self._side(width) - width)
        rgb = [np.broadcast_to(eight_bits(part.pixels), (height, width, 3)).transpose(2, 0, 1) for part in parts]
        image = np.stack([np.pad(each, beyond, mode="symmetric") for each in rgb]).astype(np.float32) / np.float32(255)
        mask = np.stack([np.pad(part.hole[None], beyond, mode="symmetric") for part in parts]).astype(np.float32)
        filled = self._session.run({"image": image, "mask": mask}, partial(progress, 0.0))[0]
        return [answer(part, each[:, :height, :width]) for part, each in zip(parts, filled, strict=True)]

    def warm_up(self) -> int:
        """Fill a hole in the smallest part that is usual, and return how many pixels the network saw."""
        side = self._side(_WARM_UP_SIDE)
        pixels, hole = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.bool_)
        hole[side // 3 : side // 2, side // 3 : side // 2] = True
        self.fill([Part(pixels, hole, Options())], lambda share: None)
        return hole.size

    def _side(self, length: int) -> int:
        return -(-max(length, self._least) // self._multiple) * self._multiple


def answer(part: Part, filled: NDArray[np.float32]) -> Pixels:
    """Return what was filled, (3, height, width) float32 around [0, 1], as pixels like the part's."""
    values = filled.transpose(1, 2, 0) * np.float32(255)
    if part.pixels.shape[2] == 1:
        values = values.mean(2, keepdims=True)
    eight = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return fill_in_eight_bits(lambda _: eight, part.pixels, part.hole)
