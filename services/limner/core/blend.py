"""Putting new pixels into a picture, and nothing else of it. Knows no model and no strategy.

The promise of the whole: where the mask is 0, the result is the original, bit by bit, alpha included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.core.geometry import Box
from limner.core.mask import Mask, bounds
from limner.core.picture import Picture, Pixels

_BAND_PIXELS = 1 << 18  # so many pixels are floats at a time: little memory, and they stay in the cache


def blend(original: Picture, fill: NDArray[Any], mask: Mask) -> Picture:
    """Return the original with `fill` shown as far as the mask says.

    `fill` is (height, width, 1 or 3), as many channels as the original has colours, of its dtype or floats in its
    range (values beyond it are clipped). `mask` is (height, width) uint8, 0 keeps to 255 replaces. The result is
    original * (1 - mask / 255) + fill * mask / 255 in floats, rounded. Alpha stays as it was.
    """
    height, width = original.pixels.shape[:2]
    colours = original.channels - original.has_alpha
    if fill.shape != (height, width, colours) or mask.shape != (height, width):
        raise ValueError(f"fill {fill.shape} and mask {mask.shape} for a picture of {(height, width, colours)}")
    pixels = original.pixels.copy()
    box = bounds(mask)
    if box is None:
        return original.with_pixels(pixels)
    rows_a_band = max(1, _BAND_PIXELS // box.width)
    for top in range(box.y, box.bottom, rows_a_band):
        band = np.s_[top : min(top + rows_a_band, box.bottom), box.x : box.right]
        shown = mask[band][:, :, None]
        old = pixels[band][:, :, :colours].astype(np.float32)
        fresh = np.where(shown > 0, fill[band], old)  # whatever the fill holds elsewhere, not even NaN gets through
        new = old + (fresh - old) * (shown.astype(np.float32) / 255)
        pixels[band][:, :, :colours] = np.rint(np.clip(new, 0, original.maximum))
    return original.with_pixels(pixels)


def paste(original: Picture, box: Box, patch: Pixels) -> Picture:
    """Return the original with `patch` in `box`.

    `patch` is (box.height, box.width, n) of the original's dtype; n is the original's channels, or its colours, and
    then alpha stays as it was.
    """
    colours = original.channels - original.has_alpha
    fits = patch.shape[:2] == (box.height, box.width) and patch.shape[2] in (colours, original.channels)
    inside = box.x >= 0 and box.y >= 0 and box.right <= original.width and box.bottom <= original.height
    if not fits or not inside or patch.dtype != original.pixels.dtype:
        raise ValueError(f"a patch of {patch.shape} {patch.dtype} for {box} of {original.pixels.shape}")
    pixels = original.pixels.copy()
    rows, columns = box.slices()
    pixels[rows, columns, : patch.shape[2]] = patch
    return original.with_pixels(pixels)
