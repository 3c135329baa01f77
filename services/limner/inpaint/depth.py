"""How models that know 8 bits only fill pictures of 16. Knows no model.

The fill is found at 8 bits and then carried to 16: each value may lie anywhere within its 8-bit step, and is put where
its surroundings suggest. So gradients come out smooth, without the steps of 8 bits, and no value leaves its step.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.core.picture import Pixels, eight_bits

_STEP = 257  # of 16-bit values in one of 8 bits
_ROUNDS = 6
_SIGMA = 2.0  # pixels; six rounds reach some ten pixels, as wide as the steps in a soft gradient are


def fill_in_eight_bits(
    fill: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], pixels: Pixels, hole: NDArray[np.bool_]
) -> Pixels:
    """Return `fill(pixels)` for (height, width, n) uint8 or uint16 pixels, where `fill` takes and gives uint8."""
    if pixels.dtype == np.uint8:
        return fill(pixels)
    return _deepened(fill(eight_bits(pixels)), pixels, hole)


def _deepened(filled: NDArray[np.uint8], pixels: NDArray[np.uint16], hole: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Return (height, width, n) uint16: `filled` in the hole, smoothed within the steps of its 8 bits."""
    steps = filled.astype(np.float32) * _STEP
    inside = hole[:, :, None]
    smooth = np.where(inside, steps, pixels.astype(np.float32))
    for _ in range(_ROUNDS):
        blurred = cv2.GaussianBlur(smooth, (0, 0), _SIGMA).reshape(smooth.shape)
        within = np.clip(blurred, steps - _STEP / 2, steps + _STEP / 2)
        smooth = np.where(inside, within, smooth)
    deep: NDArray[np.uint16] = np.rint(np.clip(smooth, 0, 65535)).astype(np.uint16)
    return deep
