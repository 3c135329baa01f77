"""Large holes in bounded steps: block by block from the border inwards, each with what is known around it.

A step cannot be stopped, so a cancelled call ends after one step at the latest. Knows no particular model.
"""

from __future__ import annotations

from collections.abc import Generator

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.core.geometry import Box, Size
from limner.core.mask import bounds
from limner.core.picture import Pixels
from limner.inpaint.filler import Options, Part, Window


def blocks(hole: NDArray[np.bool_], window: Window) -> list[Box]:
    """Return what is to be filled step by step, in order; one block around all holes if one step can see everything.

    Those nearest to known pixels come first, so that each block has some in sight: the picture's own, or filled ones.
    """
    height, width = hole.shape
    covered = bounds(hole.view(np.uint8))
    if covered is None or max(height, width) <= window.side:
        return [covered] if covered else []
    depth = cv2.distanceTransform(hole.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)
    found = []
    for y in range(covered.y, covered.bottom, window.stride):
        for x in range(covered.x, covered.right, window.stride):
            block = Box(x, y, min(window.stride, covered.right - x), min(window.stride, covered.bottom - y))
            inside = depth[block.slices()]
            if inside.any():
                found.append((float(inside[inside > 0].min()), block))
    return [block for _, block in sorted(found, key=lambda entry: entry[0])]


def fill(
    pixels: Pixels, hole: NDArray[np.bool_], steps: list[Box], side: int, options: Options
) -> Generator[Part, Pixels, Pixels]:
    """Return `pixels`, (height, width, 1 or 3), with the hole, (height, width) bool, filled in the given steps.

    Yields parts of at most `side` × `side` pixels, one after the other, and is sent each one's pixels filled.
    """
    size = Size(hole.shape[1], hole.shape[0])
    filled, unknown = pixels.copy(), hole.copy()
    for block in steps:
        view = around(block, Size(side, side), size)
        seen = yield Part(np.ascontiguousarray(filled[view.slices()]), unknown[view.slices()].copy(), options)
        inner = Box(block.x - view.x, block.y - view.y, block.width, block.height).slices()
        wanted = unknown[block.slices()]
        filled[block.slices()][wanted] = seen[inner][wanted]
        wanted[...] = False  # a view of `unknown`: it is known from now on
    return filled


def around(box: Box, size: Size, within: Size) -> Box:
    """Return a box of `size`, or of `within` where that is smaller, with `box` in its middle, or as near to it as the
    edges of `within` allow."""
    width, height = min(size.width, within.width), min(size.height, within.height)
    x = min(max(box.x + (box.width - width) // 2, 0), within.width - width)
    y = min(max(box.y + (box.height - height) // 2, 0), within.height - height)
    return Box(x, y, width, height)
