"""What ZITS does between its networks: reduces the picture, finds its edges, reads the networks' answers and measures
how deep in the hole each pixel lies. Knows no network.

Dong et al., Incremental Transformer Structure Enhanced Image Inpainting with Masking Positional Encoding, CVPR 2022.
Numbers are those of the published pipeline: its networks learnt from exactly these maps.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.inpaint.canny import canny

SIDE = 256  # of what edges and lines are drawn on in, and of what depth is measured in
_SIGMA = 3.0  # of Canny's edges, at this side
_EDGE_LEAST = 0.25  # how likely an edge must be to be drawn; lines keep their likelihood
_LINE_SHIFT, _LINE_FACTOR = 0.05, 4.0  # of a line's logits
_ENLARGED_SHIFT, _ENLARGED_FACTOR = 2.0, 2.0  # of logits after a doubling
_DEEPEST = 127
_QUADRANTS = tuple(
    np.array(kernel, np.uint8)
    for kernel in (
        [[1, 1, 0], [1, 1, 0], [0, 0, 0]],
        [[0, 0, 0], [1, 1, 0], [1, 1, 0]],
        [[0, 1, 1], [0, 1, 1], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 1], [0, 1, 1]],
    )
)  # up and left, down and left, up and right, down and right


def reduced(rgb: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return (height, width, 3) pixels as (side, side, 3): by areas if they get smaller, else linearly between."""
    smaller = min(rgb.shape[:2]) > side
    return np.asarray(cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR))


def reduced_hole(hole: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Return a (height, width) hole as (side, side): whatever holds any of it."""
    return np.asarray(cv2.resize(hole * np.uint8(255), (side, side), interpolation=cv2.INTER_AREA) > 0)


def edges(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the edges, (256, 256), of (256, 256, 3) pixels."""
    return canny(rgb, _SIGMA)


def drawn_on(
    edge: NDArray[np.float32],
    line: NDArray[np.float32],
    edge_logits: NDArray[np.float32],
    line_logits: NDArray[np.float32],
    mask: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return edges, 0 or 1, and lines, in [0, 1]: those found outside the mask, those of the logits inside. Any shape.

    The published code can draw in several rounds, the surest pixels first; both it and the peer do all in one here.
    """
    likely_edge = edge * (1 - mask) + _likelihood(edge_logits) * mask
    likely_line = _likelihood((line_logits + np.float32(_LINE_SHIFT)) * np.float32(_LINE_FACTOR))
    return (likely_edge >= _EDGE_LEAST).astype(np.float32), line * (1 - mask) + likely_line * mask


def enlarged(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how likely edges or lines are, in [0, 1], of what the upsampling network answers."""
    return _likelihood((logits + np.float32(_ENLARGED_SHIFT)) * np.float32(_ENLARGED_FACTOR))


def fitted(drawings: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return (n, 1, h, w) drawings as (n, 1, side, side), linearly between pixels and nothing averaged."""
    if drawings.shape[2:] == (side, side):
        return drawings
    return np.stack([cv2.resize(drawing[0], (side, side))[None] for drawing in drawings])


def positions(hole: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the masking positional encoding of a (height, width) hole.

    First (height, width) in [0, 128): how many steps, diagonal ones too, a pixel is from what is known, at 256². Then
    (4, height, width) of 0 and 1: whether the next step out may lead up or left, down or left, up or right, down or
    right. Outside the hole all is 0. A hole that leaves nothing known at 256² is at its deepest everywhere and has no
    way out: the published code wouldn't end there.
    """
    small = reduced_hole(hole, SIDE)
    if small.all():
        return np.where(hole, _DEEPEST, 0).astype(np.int64), np.zeros((4, *hole.shape), np.float32)
    steps = cv2.distanceTransform(small.astype(np.uint8), cv2.DIST_C, 3)
    ways_out = [
        small & (cv2.erode(steps, quadrant, borderType=cv2.BORDER_REFLECT_101) < steps) for quadrant in _QUADRANTS
    ]
    height, width = hole.shape
    maps = np.dstack([np.minimum(steps, _DEEPEST).astype(np.uint8), *ways_out]).astype(np.uint8)
    sized = cv2.resize(maps, (width, height), interpolation=cv2.INTER_NEAREST) * hole[:, :, None]
    return sized[:, :, 0].astype(np.int64), np.moveaxis(sized[:, :, 1:], 2, 0).astype(np.float32)


def _likelihood(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / (1 + exp(-logits)), of any size without an overflow."""
    half = np.float32(0.5)
    return np.asarray(np.tanh(logits * half) * half + half, np.float32)
