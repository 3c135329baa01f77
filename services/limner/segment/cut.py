"""GrabCut in a window around a first guess, and tidying of what it gives (Rother et al. 2004).

Cost is bounded by `WINDOW_SIDE`, however large the picture or the object.
"""

from __future__ import annotations

import cv2
import numpy as np

from limner.core.geometry import Box, Size
from limner.segment.regions import Array

WINDOW_SIDE = 352  # pixels of the longer side of what GrabCut works on
ITERATIONS = 3


def trimap(guess: Array, positive: Array, negative: Array, band: float) -> Array:
    """What GrabCut may still decide: (h, w) uint8 of cv2.GC_* values.

    guess (h, w) bool; positive (p, 2) and negative (q, 2) are x, y in the guess's pixels. Pixels farther than
    `band` × √area outside the guess are background for sure, and deeper than that inside are object for sure.
    """
    reach = max(2.0, band * np.sqrt(guess.sum()))
    labels = np.where(guess, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    outside = cv2.distanceTransform((~guess).astype(np.uint8), cv2.DIST_L2, 5)
    padded = np.pad(guess, 1, mode="edge").astype(np.uint8)  # the picture's frame is no edge of the object
    inside = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    labels[outside > reach] = cv2.GC_BGD
    labels[inside > reach] = cv2.GC_FGD
    mark(labels, positive, negative)
    return labels


def mark(labels: Array, positive: Array, negative: Array) -> None:
    """Write clicks, (n, 2) x and y, into a trimap as small discs."""
    radius = max(1, min(labels.shape) // 120)
    for points, value in ((positive, cv2.GC_FGD), (negative, cv2.GC_BGD)):
        for x, y in points:
            cv2.circle(labels, (int(x), int(y)), radius, int(value), -1)


def grab_cut(rgb: Array, labels: Array, iterations: int = ITERATIONS) -> Array:
    """(h, w) bool: the object in (h, w, 3) uint8, by a trimap of cv2.GC_* values."""
    object_pixels: Array = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    # Its colour models are mixtures of five Gaussians: it fails with fewer samples on either side.
    if object_pixels.sum() < 8 or (~object_pixels).sum() < 8:
        return object_pixels
    cv2.setRNGSeed(0)  # k-means inside draws from it
    labels = labels.copy()
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    nowhere = (0, 0, 1, 1)  # a rectangle that this mode does not look at
    cv2.grabCut(rgb, labels, nowhere, background, foreground, iterations, cv2.GC_INIT_WITH_MASK)
    return np.asarray((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))


def tidy(mask: Array, positive: Array, negative: Array, guess: Array) -> Array:
    """Keep what hangs together with the positive clicks (without any: with the guess), drop what a negative click is
    on, close pinholes. All (h, w) bool, clicks (n, 2) x, y."""
    count, components, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 1:
        return mask
    areas = statistics[:, cv2.CC_STAT_AREA].copy()
    keep = np.zeros(count, bool)
    if len(positive):
        keep[components[positive[:, 1].astype(int), positive[:, 0].astype(int)]] = True
    else:
        held = np.bincount(components[guess & mask], minlength=count)
        keep = (held > 0.5 * areas) & (areas >= 0.05 * areas[1:].max())
    keep[components[negative[:, 1].astype(int), negative[:, 0].astype(int)]] = False
    keep[0] = False
    mask = keep[components]
    limit = 0.003 * mask.sum()
    count, holes, statistics, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = statistics[:, cv2.CC_STAT_AREA] <= limit
    small[holes[negative[:, 1].astype(int), negative[:, 0].astype(int)]] = False
    small[0] = False
    return np.asarray(mask | small[holes])


def window(guess: Array, size: Size, margin: float = 0.35) -> Box:
    """The box around a guess, (h, w) bool over the whole picture at any scale, grown for context; in pixels of
    `size`."""
    rows, columns = np.flatnonzero(guess.any(axis=1)), np.flatnonzero(guess.any(axis=0))
    sy, sx = size.height / guess.shape[0], size.width / guess.shape[1]
    top, bottom, left, right = rows[0] * sy, (rows[-1] + 1) * sy, columns[0] * sx, (columns[-1] + 1) * sx
    grow = margin * max(bottom - top, right - left) + 8
    left, top = max(0, int(left - grow)), max(0, int(top - grow))
    right, bottom = min(size.width, int(np.ceil(right + grow))), min(size.height, int(np.ceil(bottom + grow)))
    return Box(left, top, right - left, bottom - top)
