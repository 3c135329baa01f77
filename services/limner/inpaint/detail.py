"""Detail for fills that were made at a reduced size, from elsewhere in the picture. Knows no model.

Enlarging alone leaves a fill soft. So each patch of the reduced fill is looked up among the known patches of the
reduced picture, and what reducing took away from the one that is most alike, its residual, is added to the enlarged
fill (after Yi et al., "Contextual Residual Aggregation for Ultra High-Resolution Image Inpainting", 2020, but by
nearest patches instead of a network's attention). Nothing of what the mask covers is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.core.geometry import Box, Size
from limner.core.mask import bounds
from limner.core.picture import Pixels
from limner.core.resample import resize

_LEAST_FACTOR = 1.2  # what was reduced by less has lost little
_LEAST_STEP = 4  # pixels of the reduced picture from one patch to the next
_MOST_PATCHES = 10_000  # to be looked up: about two seconds
_MOST_SOURCES = 60_000
_SIDE_SAMPLES = 5  # patches are compared by so many pixels a side
_DIMENSIONS = 12  # of the patches' principal components
_AT_ONCE = 500  # patches between two checks


def enlarged_with_detail(
    filled: Pixels, pixels: Pixels, hole: NDArray[np.bool_], part: Box, check: Callable[[], None]
) -> Pixels:
    """Return `filled`, (h, w, 1 or 3), enlarged to the size of `pixels`, (height, width, 1 or 3), as far as `part`
    goes, of the dtype of both.

    `hole`, (height, width), is what isn't known of `pixels`. `check` is called several times a second.
    """
    size = Size(hole.shape[1], hole.shape[0])
    plain = resize(filled, size, method="cubic", part=part)
    scale = np.array([size.height / filled.shape[0], size.width / filled.shape[1]])
    if scale.max() < _LEAST_FACTOR:
        return plain
    lost = _reduced(hole, filled.shape[:2])
    covered = bounds(lost)
    if covered is None:
        return plain
    step = max(_LEAST_STEP, ceil((int(np.count_nonzero(lost)) / _MOST_PATCHES) ** 0.5))
    sight = covered.grown(64 + max(covered.width, covered.height) // 2, Size(filled.shape[1], filled.shape[0]))
    sources, targets = _sources(lost, step, sight), _targets(lost, step)
    if len(sources) < _DIMENSIONS:
        return plain
    nearest = sources[_nearest(filled, sources, targets, step, check)]
    view = _scaled(sight.grown(step, Size(filled.shape[1], filled.shape[0])), scale, size)
    known = pixels[view.slices()]
    whole = resize(filled, size, method="cubic", part=view)
    reach = np.maximum(np.rint(0.75 * step * scale), 1).astype(int)
    window = np.outer(*(np.hanning(2 * r + 3)[1:-1] for r in reach)).astype(np.float32)[:, :, None]
    corner = np.array([view.y, view.x])
    total = np.zeros(plain.shape, np.float32)
    weight = np.full((*plain.shape[:2], 1), 1e-6, np.float32)
    low, high = np.array([part.y, part.x]), np.array([part.bottom, part.right])
    to, of = ((np.array(points + 0.5) * scale).astype(int) - reach for points in (targets, nearest))
    for number, (first, source) in enumerate(zip(to, of, strict=True)):
        if number % _AT_ONCE == 0:
            check()
        start, end = np.maximum(first, low), np.minimum(first + 2 * reach + 1, high)
        if (start >= end).any():
            continue
        (y, x), (height, width) = source + start - first - corner, end - start
        residual = known[y : y + height, x : x + width].astype(np.float32) - whole[y : y + height, x : x + width]
        (y, x) = start - first
        shown = window[y : y + height, x : x + width]
        (y, x) = start - low
        total[y : y + height, x : x + width] += residual * shown
        weight[y : y + height, x : x + width] += shown
    total /= weight
    total += plain
    return np.rint(np.clip(total, 0, np.iinfo(pixels.dtype).max)).astype(pixels.dtype)


def _reduced(hole: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return `shape` uint8, 1 where any pixel of the hole is."""
    rows, columns = (np.arange(small) * large // small for small, large in zip(shape, hole.shape, strict=True))
    reduced: NDArray[np.bool_] = np.logical_or.reduceat(np.logical_or.reduceat(hole, rows, axis=0), columns, axis=1)
    return reduced.view(np.uint8)


def _sources(lost: NDArray[np.uint8], step: int, sight: Box) -> NDArray[np.intp]:
    """Return middles (n, 2), row and column, of patches in sight that hold nothing of the hole nor of the outside."""
    square = np.ones((2 * step + 3, 2 * step + 3), np.uint8)
    near = cv2.copyMakeBorder(lost, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    free = np.zeros(lost.shape, np.bool_)
    free[sight.slices()] = cv2.dilate(near, square, borderValue=1)[1:-1, 1:-1][sight.slices()] == 0
    found = np.argwhere(free)
    return found[:: max(1, ceil(len(found) / _MOST_SOURCES))]


def _targets(lost: NDArray[np.uint8], step: int) -> NDArray[np.intp]:
    """Return middles (n, 2) of patches, `step` apart, that cover the hole."""
    near = cv2.dilate(lost, np.ones((2 * step + 1, 2 * step + 1), np.uint8))
    return np.argwhere(near[::step, ::step]) * step


def _nearest(
    filled: Pixels, sources: NDArray[np.intp], targets: NDArray[np.intp], step: int, check: Callable[[], None]
) -> NDArray[np.intp]:
    """Return for each target the index of the source that looks about the most like it."""
    from scipy.spatial import cKDTree  # here, since it takes a tenth of a second, and few calls need it

    check()
    known, wanted = (_samples(filled, points, step) for points in (sources, targets))
    mean = known.mean(axis=0)
    known -= mean
    wanted -= mean
    _, axes = np.linalg.eigh(known.T @ known)
    axes = axes[:, -_DIMENSIONS:]  # the largest come last
    tree = cKDTree(known @ axes)
    wanted = wanted @ axes
    found = []
    for start in range(0, len(wanted), _AT_ONCE):
        check()
        found.append(tree.query(wanted[start : start + _AT_ONCE], eps=1.0)[1])
    return np.concatenate(found)


def _samples(filled: Pixels, points: NDArray[np.intp], step: int) -> NDArray[np.float32]:
    """Return (n, samples) float32: pixels of the patches around `points`, mirrored at the picture's edge."""
    offsets = np.rint(np.linspace(-step, step, _SIDE_SAMPLES)).astype(int)
    padded = np.pad(filled, ((step, step), (step, step), (0, 0)), mode="symmetric")
    rows = points[:, 0, None, None] + step + offsets[None, :, None]
    columns = points[:, 1, None, None] + step + offsets[None, None, :]
    samples: NDArray[np.float32] = padded[rows, columns].reshape(len(points), -1).astype(np.float32)
    return samples


def _scaled(box: Box, scale: NDArray[np.float64], size: Size) -> Box:
    """Return what a box of the reduced picture covers in one of `size`, and a little more."""
    y, x = int(box.y * scale[0]), int(box.x * scale[1])
    return Box(x, y, ceil(box.width * scale[1]), ceil(box.height * scale[0])).grown(2, size)
