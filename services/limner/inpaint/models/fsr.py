"""Frequency selective reconstruction: continues the few frequencies that explain the surroundings best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.core.card import ModelCard
from limner.core.picture import Pixels
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.inpaint.depth import fill_in_eight_bits
from limner.inpaint.filler import Filler, Options, Part, Window

CARD = ModelCard(
    name="fsr",
    task="inpaint",
    description="Continues frequencies of the surroundings. Best on scratches and thin strokes; slow on objects.",
    licence="Apache-2.0",
    source="OpenCV contrib (xphoto, FSR_FAST); Genser et al., Spectral Constrained FSR, 2018",
)


def window(options: Options) -> Window:
    """Return what takes three seconds at most: a tenth of a millisecond a pixel of the hole."""
    return Window(96, 48)


def load(placement: Placement, store: Store) -> Filler:
    """Return the filler; there is nothing to load."""
    return Fsr()


class Fsr:
    """At 8 bits only: OpenCV takes 16 and gives wrong values for them. It also changes pixels around the hole, which
    blending undoes."""

    def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Pixels]:
        return [_filled(part) for part in parts]


def _filled(part: Part) -> Pixels:
    known = np.where(part.hole, np.uint8(0), np.uint8(255))  # the opposite of what cv2.inpaint wants

    def fill_eight(eight: NDArray[np.uint8]) -> NDArray[np.uint8]:
        filled = np.zeros_like(eight)
        cv2.xphoto.inpaint(eight, known, filled, cv2.xphoto.INPAINT_FSR_FAST)
        return filled

    return fill_in_eight_bits(fill_eight, part.pixels, part.hole)
