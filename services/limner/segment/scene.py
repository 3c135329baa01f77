"""Everything worked out of a picture before any click: the embedding of the `grabcut` model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from limner.core.geometry import Size
from limner.segment.proposals import Surroundings, survey
from limner.segment.regions import LIKENESSES, Array, Regions, coarsen, edge_strength, find_regions, lab, merge
from limner.segment.saliency import saliency

WORKING_SIDE = 512  # pixels of the longer side that regions are found at
DETAIL_SIDE = 2048  # and that edges are cut at: what is larger is cut here and scaled up
SALIENCY_REGIONS = 250


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, looked at."""

    detail: Array  # (h, w, 3) uint8 RGB, at most DETAIL_SIDE
    regions: Regions  # of the working copy
    trees: tuple[Array, ...]  # parents of nodes, as limner.segment.regions.merge gives them
    around: Surroundings

    @property
    def detail_size(self) -> Size:
        """The detail copy's size."""
        return Size(self.detail.shape[1], self.detail.shape[0])

    @property
    def size_bytes(self) -> int:
        """Memory of all arrays."""
        near = self.around.near
        around = [array for array in vars(self.around).values() if array is not near]
        held = (*vars(self.regions).values(), *around, near.data, near.indices, near.indptr, *self.trees, self.detail)
        return sum(array.nbytes for array in held)


def look(rgb: Array, check: Callable[[], None]) -> Scene:
    """Work out the scene of (height, width, 3) uint8 RGB. `check` is called between steps and may raise."""
    detail = shrunk(rgb, DETAIL_SIDE)
    if detail is rgb:
        detail = rgb.copy()  # a cache must not keep a request's message alive
    working = shrunk(detail, WORKING_SIDE)
    colours = lab(working)
    edges = edge_strength(colours)
    check()
    regions = find_regions(colours, edges)
    trees = []
    for likeness in LIKENESSES:
        check()
        trees.append(merge(regions, likeness))
    check()
    coarse, owner = coarsen(regions, trees[0], SALIENCY_REGIONS)
    salience = saliency(coarse)[owner]
    check()
    return Scene(detail, regions, tuple(trees), survey(regions, salience))


def shrunk(pixels: Array, side: int) -> Array:
    """The picture with its longer side at most `side`; itself if it is no larger."""
    height, width = pixels.shape[:2]
    if max(height, width) <= side:
        return pixels
    size = Size(width, height).scaled(side / max(height, width))
    return np.asarray(cv2.resize(pixels, (size.width, size.height), interpolation=cv2.INTER_AREA))
