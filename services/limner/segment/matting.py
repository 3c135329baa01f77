"""Soft edges, and pictures with their background made transparent.

Edges are softened by a guided filter (He, Sun and Tang 2010), whose kernel is the matting Laplacian's, in a band about
the border of a hard mask. Colours are never changed, neither where the result is opaque nor at soft edges: what the
background left in them there (hair against a sky) stays.
"""

from __future__ import annotations

import cv2
import numpy as np

from limner.core.mask import Mask
from limner.core.picture import Picture
from limner.segment.regions import Array


def soften(hard: Array, rgb: Array) -> Mask:
    """(h, w) bool over (h, w, 3) uint8 RGB to (h, w) uint8: 0 or 255 away from the border, soft along it."""
    if hard.all() or not hard.any():
        return hard.astype(np.uint8) * 255
    radius = max(4, round(max(hard.shape) / 160))
    alpha = cv2.ximgproc.guidedFilter(rgb, hard.astype(np.float32), radius, 2e-4 * 255**2)
    alpha = np.clip((alpha - 0.1) / 0.8, 0, 1)
    inside = cv2.distanceTransform(hard.astype(np.uint8), cv2.DIST_L2, 5)
    outside = cv2.distanceTransform((~hard).astype(np.uint8), cv2.DIST_L2, 5)
    alpha[inside > 2 * radius] = 1
    alpha[outside > 2 * radius] = 0
    return np.asarray(np.round(alpha * 255), np.uint8)


def cutout(picture: Picture, foreground: Mask) -> Picture:
    """Return the picture with alpha: what it had, times `foreground`, (height, width) uint8 of its size."""
    maximum = picture.maximum
    alpha = picture.alpha()
    shown = foreground.astype(np.uint32)
    had = np.uint32(maximum) if alpha is None else alpha.astype(np.uint32)
    result = (had * shown + 127) // 255
    dtype = picture.pixels.dtype
    return picture.with_pixels(np.concatenate([picture.colour(), result.astype(dtype)[:, :, None]], axis=2))
