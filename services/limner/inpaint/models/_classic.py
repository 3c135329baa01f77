"""OpenCV's two classic algorithms behind one call. Knows nothing of cards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt

import cv2
import numpy as np

from limner.core.picture import Pixels
from limner.inpaint.filler import Options, Part, Window

_READS_A_STEP = 60_000_000  # pixels read in about a second: each filled one looks at a square around it


def window(options: Options) -> Window:
    """Return smaller blocks for larger radii, since time grows with the radius' square."""
    reach = int(options.radius) + 2
    return Window(min(isqrt(_READS_A_STEP) // (2 * reach + 1), 2048), reach)


@dataclass(frozen=True)
class Classic:
    """`cv2.inpaint` with one of its flags. 8 bits in one pass; 16 bits channel by channel, all it offers there."""

    flag: int

    def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Pixels]:
        return [self._filled(part) for part in parts]

    def _filled(self, part: Part) -> Pixels:
        mask, radius = part.hole.astype(np.uint8), part.options.radius
        if part.pixels.dtype == np.uint8:
            return cv2.inpaint(part.pixels, mask, radius, self.flag).reshape(part.pixels.shape)
        planes = [cv2.inpaint(plane, mask, radius, self.flag) for plane in cv2.split(part.pixels)]
        return np.stack(planes, axis=2)
