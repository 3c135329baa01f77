"""Straight lines of a picture around a hole, by ZITS' wireframe network. Knows neither what fills the hole nor torch.

    lines = Wireframes(maps, scores).find(pixels, hole)
    drawing = drawn(lines, 256)

Xue et al., Holistically-Attracted Wireframe Parsing, CVPR 2020: every point of a map proposes lines, and a proposal
counts as the two junctions nearest to its ends; a small network then judges the features along it. Where the published
code has its ways (half a point here and not there, what it does at the border), so have these lines: the weights were
trained with them. Positions are computed here and not in the graph, which may run with few digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.core.picture import Pixels
from limner.engine.session import Check, Session
from limner.inpaint.structure import reduced, reduced_hole

_Floats = NDArray[np.float32]

_SIDE = 512  # of what the network sees
_REACH = 5.0  # points of the maps that a distance of 1 means
_LEAST_LEG = 1e-3  # sine or cosine of the angle to a line's end
_LEAST_JUNCTION = 0.008
_MOST_JUNCTIONS = 300
_SAMPLES, _KEPT = 32, 8  # places on a line, and how many remain: the greatest of each four neighbours
_LINES_AT_ONCE = 256
_LEAST_SCORE = 0.05  # of a line that is returned
_LEAST_DRAWN = 0.85


@dataclass(frozen=True)
class Lines:
    """`ends`, (n, 4) float32: x, y, x, y as shares of the picture's sides. `scores`, (n,) float32 in (0.05, 1]."""

    ends: _Floats
    scores: _Floats


class Wireframes:
    """Wireframes(maps, scores) has zits' wireframe.onnx and wireframe_scores.onnx opened.

    Not for two threads at once.
    """

    def __init__(self, maps: Session, scores: Session) -> None:
        self._maps = maps
        self._scores = scores

    def find(self, pixels: Pixels, hole: NDArray[np.bool_], check: Check | None = None) -> Lines:
        """Return the lines of `pixels`, (height, width, 3) uint8; what they are where `hole`, (height, width), is
        doesn't matter.

        The lines of the strongest junctions come first. `check` is called several times a second; raises what it
        raises, and OutOfMemory.
        """
        image = reduced(pixels, _SIDE).transpose(2, 0, 1)[None] / np.float32(255)
        mask = reduced_hole(hole, _SIDE)[None, None].astype(np.float32)
        proposals, strengths, offsets, features = self._maps.run({"image": image, "mask": mask}, check)
        ends = _between_junctions(_proposed(proposals[0]), _junctions(strengths[0, 0], offsets[0]))
        by_point = np.ascontiguousarray(features[0].transpose(1, 2, 0))
        scores = [
            self._scores.run({"features": _along(ends[start : start + _LINES_AT_ONCE], by_point)}, check)[0]
            for start in range(0, len(ends), _LINES_AT_ONCE)
        ]
        score = np.concatenate(scores) if scores else np.zeros(0, np.float32)
        likely = score > _LEAST_SCORE
        return Lines(ends[likely] / np.float32(strengths.shape[3]), score[likely])


def drawn(lines: Lines, side: int) -> _Floats:
    """Return (side, side) float32 in [0, 1], multiples of 1/255: the likely lines, one pixel wide and smooth.

    What a pixel has is how near its middle is to the line (Zingl, A Rasterizing Algorithm for Drawing Curves, 2012, as
    in scikit-image's `line_aa`, which the weights were trained with).
    """
    canvas = np.zeros((side, side), np.float64)
    for x0, y0, x1, y1 in (lines.ends[lines.scores > _LEAST_DRAWN] * side).astype(int):
        box = slice(min(y0, y1), min(max(y0, y1) + 1, side)), slice(min(x0, x1), min(max(x0, x1) + 1, side))
        rows, columns = np.ogrid[box]
        across = np.abs((rows - y0) * (x1 - x0) - (columns - x0) * (y1 - y0))
        near = 1 - across / max(1.0, np.hypot(y1 - y0, x1 - x0))
        canvas[box] = np.maximum(canvas[box], near)
    return np.floor(canvas * 255).astype(np.float32) / np.float32(255)


def _proposed(maps: _Floats) -> _Floats:
    """Return lines (n, 2, 2), both ends' x and y, in points: three of every point of the maps (5, height, width).

    They differ in the distance from the point to the line: as it says, less its doubt, and more.
    """
    height, width = maps.shape[1:]
    turn = (maps[0] - 0.5) * np.float32(2 * np.pi)
    angles = maps[1:3] * np.float32(np.pi / 2)
    legs = np.maximum(np.sin(angles), _LEAST_LEG) / np.maximum(np.cos(angles), _LEAST_LEG)
    legs[1] *= -1  # the second end lies on the other side
    distance = (maps[3] + np.array([-1, 0, 1], np.float32)[:, None, None] * maps[4])[:, None] * np.float32(_REACH)
    x = (np.cos(turn) - np.sin(turn) * legs) * distance + np.arange(width, dtype=np.float32)
    y = (np.sin(turn) + np.cos(turn) * legs) * distance + np.arange(height, dtype=np.float32)[:, None]
    ends = np.stack([np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)], -1)  # distance, end, height, width, x or y
    return ends.transpose(0, 2, 3, 1, 4).reshape(-1, 2, 2)


def _junctions(strengths: _Floats, offsets: _Floats) -> _Floats:
    """Return x and y, (n, 2), of the strongest peaks of (height, width), the strongest first."""
    peaks = np.where(strengths == cv2.dilate(strengths, np.ones((3, 3), np.uint8)), strengths, 0)
    strongest = np.argsort(-peaks, axis=None, kind="stable")[:_MOST_JUNCTIONS]
    rows, columns = np.unravel_index(strongest[peaks.flat[strongest] > _LEAST_JUNCTION], peaks.shape)
    x, y = columns + offsets[0, rows, columns] + 0.5, rows + offsets[1, rows, columns] + 0.5
    return np.stack([x, y], -1, dtype=np.float32)


def _between_junctions(lines: _Floats, junctions: _Floats) -> _Floats:
    """Return (n, 4), each pair of junctions once that are the nearest ones to both ends of any line."""
    from scipy.spatial import cKDTree  # here, since it takes a tenth of a second, and few calls need it

    if not len(junctions):
        return np.zeros((0, 4), np.float32)
    pairs = np.sort(cKDTree(junctions).query(lines)[1])
    pairs = np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
    return np.reshape(junctions[pairs], (-1, 4))


def _along(ends: _Floats, features: _Floats) -> _Floats:
    """Return (n, 8 × channels), channel by channel: the features, (height, width, channels), along lines (n, 4)."""
    height, width, channels = features.shape
    share = np.linspace(0, 1, _SAMPLES, dtype=np.float32)
    x, y = (ends[:, [axis]] * share + ends[:, [axis + 2]] * (1 - share) - 0.5 for axis in (0, 1))
    # Between the last point and the border both neighbours are the same, and their weights cancel out: so be it.
    left, top = np.clip(np.floor(x), 0, width - 1), np.clip(np.floor(y), 0, height - 1)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    found = np.zeros((*x.shape, channels), np.float32)
    for row, vertical in ((top, bottom - y), (bottom, y - top)):
        for column, horizontal in ((left, right - x), (right, x - left)):
            found += features[row.astype(int), column.astype(int)] * (vertical * horizontal)[:, :, None]
    greatest: _Floats = found.reshape(len(ends), _KEPT, _SAMPLES // _KEPT, channels).max(2)
    return greatest.transpose(0, 2, 1).reshape(len(ends), -1)
