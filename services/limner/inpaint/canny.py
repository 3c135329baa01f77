"""Canny's edges, pixel for pixel those of scikit-image's `feature.canny` at its defaults: what ZITS' networks learnt
from. Knows nothing of them.

OpenCV's differ: of whole numbers, without interpolation along the gradient, with other thresholds. scikit-image itself
would be a large dependency for this one function; a test compares with it.
Canny, A Computational Approach to Edge Detection, 1986.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = float(np.float32(0.1)), 0.2  # of the gradient's length; the first is a C float there
_LUMINANCE = np.array([0.2125, 0.7154, 0.0721])  # of linear light, as Rec. 709 has it


def canny(rgb: NDArray[np.uint8], sigma: float) -> NDArray[np.bool_]:
    """Return where the edges of (height, width, 3) pixels are: (height, width), lines one pixel wide.

    `sigma` in pixels is how much the picture is smoothed first. The outermost pixels are never edges.
    """
    from scipy import ndimage  # here, since it takes a while, and few servers' calls need it

    grey = rgb * (1 / 255) @ _LUMINANCE
    inside = ndimage.gaussian_filter(np.ones_like(grey), sigma, mode="constant")
    smooth = ndimage.gaussian_filter(grey, sigma, mode="constant") / (inside + np.finfo(float).eps)
    across, down = ndimage.sobel(smooth, axis=1), ndimage.sobel(smooth, axis=0)
    ridges = _ridges(np.sqrt(down * down + across * across), across, down)
    labels, count = ndimage.label(ridges > 0, np.ones((3, 3)))
    strong = np.zeros(count + 1, bool)
    strong[labels[ridges >= HIGH]] = True
    edges: NDArray[np.bool_] = strong[labels]
    return edges


def _ridges(length: NDArray[np.float64], across: NDArray[np.float64], down: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the gradient's length where it is LOW or more and no less than one step up and one down the gradient."""
    candidates = length >= LOW
    candidates[[0, -1], :] = False
    candidates[:, [0, -1]] = False
    y, x = np.nonzero(candidates)
    here, across, down = length[y, x], across[y, x], down[y, x]
    # A step ends between two neighbours, a straight and a diagonal one, and takes a value between theirs.
    slope = np.where((down > 0) == (across > 0), 1, -1)
    steep = np.abs(down) > np.abs(across)
    straight_y, straight_x = np.where(steep, slope, 0), np.where(steep, 0, 1)
    share = np.minimum(np.abs(down), np.abs(across)) / np.maximum(np.abs(down), np.abs(across))
    highest = np.ones(len(here), bool)
    for way in (1, -1):
        diagonal, straight = length[y + way * slope, x + way], length[y + way * straight_y, x + way * straight_x]
        highest &= diagonal * share + straight * (1.0 - share) <= here
    ridges = np.zeros_like(length)
    ridges[y[highest], x[highest]] = here[highest]
    return ridges
