"""From clicks and boxes to a mask of the whole picture, by way of a first guess in superpixels and GrabCut."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from limner.core.geometry import Box, Size
from limner.segment.cut import WINDOW_SIDE, grab_cut, mark, tidy, trimap, window
from limner.segment.proposals import appeal, candidates, describe, members
from limner.segment.regions import Array
from limner.segment.scene import Scene

BOX_ITERATIONS = 5
BAND = 0.3  # of √area: how far from the guess's border GrabCut may decide


def by_clicks(scene: Scene, positive: Array, negative: Array, check: Callable[[], None]) -> tuple[Array, float]:
    """(h, w) bool of the detail copy, and a score 0 to 1. Clicks are (p, 2) and (q, 2), x and y of the detail copy."""
    guess, score = guess_by_clicks(scene, positive, negative)
    check()
    return cut_out(scene, guess, positive, negative, BAND), score


def guess_by_clicks(scene: Scene, positive: Array, negative: Array) -> tuple[Array, float]:
    """The most appealing set of superpixels, (h, w) bool of the working copy, and its score 0 to 1."""
    regions, around = scene.regions, scene.around
    on, off = working_points(scene, positive), working_points(scene, negative)
    sets = candidates(regions, scene.trees, around.salience, superpixels_at(scene, on), superpixels_at(scene, off))
    appeals = appeal(describe(regions, around, sets, on))
    best = int(appeals.argmax())
    return sets[best][regions.labels], float(np.clip(appeals[best], 0, 1))


def by_box(scene: Scene, box: Box, positive: Array, negative: Array, check: Callable[[], None]) -> tuple[Array, float]:
    """What a box of the detail copy holds: (h, w) bool of the detail copy, and a score 0 to 1.

    Clicks are (p, 2) and (q, 2), x and y of the detail copy; those outside the box say only what colours are meant.
    """
    size = scene.detail_size
    guess = np.zeros((size.height, size.width), bool)
    guess[box.slices()] = True
    view = window(guess, size)
    scale = min(1.0, WINDOW_SIDE / max(view.width, view.height))
    inner = to_window(guess, view, scale)
    labels = np.where(inner, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    on, off = (window_points(points, view, inner.shape) for points in (positive, negative))
    mark(labels, on, off)
    rgb = picture_window(scene, view, inner.shape)
    check()
    found = tidy(grab_cut(rgb, labels, BOX_ITERATIONS), on, off, inner)
    if found.sum() < 0.05 * inner.sum():
        # Inside and outside are alike in colour: fall back on the regions that fill the box best.
        found = best_fill(scene, box, view, scale, size)
        labels = np.where(inner, trimap(found, on, off, BAND), np.uint8(cv2.GC_BGD))
        found = tidy(grab_cut(rgb, labels), on, off, found)
    return from_window(found, view, size, scene.detail), float(found.sum() / max(1, inner.sum()))


def best_fill(scene: Scene, box: Box, view: Box, scale: float, size: Size) -> Array:
    """The node of any merge tree whose own box is likest a box of the detail copy, as a window sees it."""
    regions = scene.regions
    height, width = regions.labels.shape
    across, down = width / size.width, height / size.height
    wanted = np.array([box.x * across, box.y * down, box.right * across, box.bottom * down])
    best, likeness = np.ones(regions.count, bool), -1.0
    for parent in scene.trees:
        holds = members(parent, regions.count)
        corners = scene.around.boxes
        low = np.where(holds[:, :, None], corners[None, :, :2], np.inf).min(axis=1)
        high = np.where(holds[:, :, None], corners[None, :, 2:], -np.inf).max(axis=1)
        both = np.prod(np.clip(np.minimum(high, wanted[2:]) - np.maximum(low, wanted[:2]), 0, None), axis=1)
        ratio = both / (np.prod(high - low, axis=1) + np.prod(wanted[2:] - wanted[:2]) - both)
        if ratio.max() > likeness:
            best, likeness = holds[int(ratio.argmax())], float(ratio.max())
    return to_window(best[regions.labels], view, scale, size)


def cut_out(scene: Scene, guess: Array, positive: Array, negative: Array, band: float) -> Array:
    """Let GrabCut correct a guess, (h, w) bool of any size over the whole picture; (h, w) bool of the detail copy."""
    size = scene.detail_size
    view = window(guess, size)
    scale = min(1.0, WINDOW_SIDE / max(view.width, view.height))
    local = to_window(guess, view, scale, size)
    on, off = (window_points(points, view, local.shape) for points in (positive, negative))
    rgb = picture_window(scene, view, local.shape)
    found = tidy(grab_cut(rgb, trimap(local, on, off, band)), on, off, local)
    return from_window(found, view, size, scene.detail)


def working_points(scene: Scene, points: Array) -> Array:
    """(n, 2) x and y of the detail copy to those of the working copy."""
    height, width = scene.regions.labels.shape
    return inside((points + 0.5) * (width / scene.detail.shape[1], height / scene.detail.shape[0]), (height, width))


def inside(points: Array, shape: tuple[int, ...]) -> Array:
    """Points moved to the nearest pixel of (h, w)."""
    return np.clip(np.floor(points), 0, (shape[1] - 1, shape[0] - 1))


def superpixels_at(scene: Scene, points: Array) -> Array:
    """The superpixels under (n, 2) points of the working copy, each once."""
    return np.unique(scene.regions.labels[points[:, 1].astype(int), points[:, 0].astype(int)])


def window_points(points: Array, view: Box, shape: tuple[int, ...]) -> Array:
    """Those of (n, 2) points of the detail copy that a window sees, in the window's pixels."""
    seen = points[
        (points[:, 0] >= view.x) & (points[:, 0] < view.right) & (points[:, 1] >= view.y) & (points[:, 1] < view.bottom)
    ]
    return inside((seen - (view.x, view.y) + 0.5) * (shape[1] / view.width, shape[0] / view.height), shape)


def to_window(mask: Array, view: Box, scale: float, size: Size | None = None) -> Array:
    """A mask over the whole picture, (h, w) bool, as a window sees it; `size` is the detail copy's, if not the
    mask's."""
    if size is not None and mask.shape != (size.height, size.width):
        mask = cv2.resize(mask.astype(np.uint8), (size.width, size.height), interpolation=cv2.INTER_NEAREST) > 0
    target = Size(view.width, view.height).scaled(scale)
    part = mask[view.slices()].astype(np.float32)
    return np.asarray(cv2.resize(part, (target.width, target.height), interpolation=cv2.INTER_AREA)) > 0.5


def picture_window(scene: Scene, view: Box, shape: tuple[int, ...]) -> Array:
    """(h, w, 3) uint8: what a window sees of the detail copy."""
    part = scene.detail[view.slices()]
    return np.ascontiguousarray(cv2.resize(part, (shape[1], shape[0]), interpolation=cv2.INTER_AREA))


def from_window(found: Array, view: Box, size: Size, detail: Array) -> Array:
    """A window's mask in the detail copy: enlarged, then its border put where the picture's edges are."""
    whole = np.zeros((size.height, size.width), bool)
    if found.shape == (view.height, view.width):
        whole[view.slices()] = found
        return whole
    soft = cv2.resize(found.astype(np.float32), (view.width, view.height), interpolation=cv2.INTER_LINEAR)
    radius = max(2, round(1.5 * view.width / found.shape[1]))
    guide = np.ascontiguousarray(detail[view.slices()])
    whole[view.slices()] = cv2.ximgproc.guidedFilter(guide, soft, radius, 1e-4 * 255**2) > 0.5
    return whole
