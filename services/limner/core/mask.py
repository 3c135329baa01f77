"""Masks: (height, width) uint8, 0 keeps to 255 replaces. Knows no picture but the one a mask is read from.

Growing and shrinking go by discs: pixels whose centres are at most the radius apart. On grey masks they are the
greatest, and the smallest, value within the disc (flat grey morphology), so that soft edges move and stay soft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.core.errors import BadMask
from limner.core.geometry import Box, Size
from limner.core.picture import Picture

Mask: TypeAlias = NDArray[np.uint8]

_FEW_LEVELS = 4  # up to so many grey values, one distance transform each is cheaper than a pass a pixel of radius
_MANY_HOLES = 4096


def mask_from_picture(picture: Picture) -> Mask:
    """Return the picture's luminance; alpha is ignored. 16 bits are rounded down, but nothing that isn't black
    becomes 0."""
    colour = picture.colour()
    grey = np.asarray(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)) if colour.shape[2] == 3 else colour[:, :, 0]
    eight = grey if grey.dtype == np.uint8 else (grey // 256).astype(np.uint8)
    return np.maximum(eight, colour.any(axis=2).astype(np.uint8))


def check_mask(mask: Mask, size: Size, *, field: str = "mask") -> None:
    """Raise BadMask if the mask is of another size than the picture, or selects nothing."""
    height, width = mask.shape
    if (width, height) != (size.width, size.height):
        raise BadMask(
            f"the mask is {width} × {height}, the picture {size.width} × {size.height}; "
            "send a mask of the picture's size (upright, EXIF orientation applied)",
            field=field,
            metadata={"mask": f"{width}x{height}", "picture": f"{size.width}x{size.height}"},
        )
    if not mask.any():
        raise BadMask("the mask is all black; paint what is to be replaced in white", field=field)


def threshold(mask: Mask, level: int = 127) -> Mask:
    """Return 255 where the mask is above `level`, 0 elsewhere."""
    return np.where(mask > level, np.uint8(255), np.uint8(0))


def invert(mask: Mask) -> Mask:
    """Return 255 less the mask."""
    return ~mask


def grow(mask: Mask, radius: int) -> Mask:
    """Return the greatest value within `radius` pixels of each pixel.

    Only the surroundings of what is covered are worked on. Masks of few values, as black and white ones, take the
    same time at any radius: each value's reach is a threshold of the exact distance to it (Felzenszwalb and
    Huttenlocher, "Distance Transforms of Sampled Functions", 2012). Soft masks take four passes a pixel of radius.
    From a radius of about 900, where neighbouring distances are less than 1/1000 pixel apart, the transform's floats
    may put a pixel that is just outside the disc into it.
    """
    covered = bounds(mask)
    if covered is None or radius < 1:
        return mask.copy()
    box = covered.grown(radius, Size(mask.shape[1], mask.shape[0]))
    part = np.ascontiguousarray(mask[box.slices()])
    levels = np.flatnonzero(np.bincount(part.ravel(), minlength=256))
    levels = levels[levels > 0]
    grown = mask.copy()
    grown[box.slices()] = _grow_levels(part, radius, levels) if len(levels) <= _FEW_LEVELS else _grow_grey(part, radius)
    return grown


def _grow_levels(part: Mask, radius: int, levels: NDArray[np.intp]) -> Mask:
    """Grow level by level, the greatest last."""
    grown = part.copy()
    for level in levels:
        grown[_distance(part >= level) <= _just_above(radius)] = level
    return grown


def _grow_grey(part: Mask, radius: int) -> Mask:
    """Grow all levels at once: the disc is a stack of rows, and the greatest value of a row comes from that of the
    next shorter one."""
    height, width = part.shape
    rows = part.copy()  # the greatest value within `reach` pixels left and right
    grown = part.copy()
    reach = 0
    for offset in range(radius, -1, -1):  # from the disc's first, shortest row to its middle
        while reach < min(isqrt(radius * radius - offset * offset), width - 1):
            reach += 1
            np.maximum(rows[:, reach:], part[:, :-reach], out=rows[:, reach:])
            np.maximum(rows[:, :-reach], part[:, reach:], out=rows[:, :-reach])
        if offset < height:
            np.maximum(grown[offset:], rows[: height - offset], out=grown[offset:])
            np.maximum(grown[: height - offset], rows[offset:], out=grown[: height - offset])
    return grown


def _distance(covered: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return (height, width) float32: pixels from each pixel's centre to that of the nearest covered one, exactly."""
    distance: NDArray[np.float32]
    distance = cv2.distanceTransform((~covered).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)  # type: ignore[assignment]
    return distance


def _just_above(radius: int) -> float:
    """Return a bound between `radius` and the next distance there is, the root of radius² + 1."""
    return radius + 0.25 / radius


def shrink(mask: Mask, radius: int) -> Mask:
    """Return the smallest value within `radius` pixels of each pixel. The picture's border doesn't eat into it."""
    covered = bounds(mask)
    if covered is None or radius < 1:
        return mask.copy()
    box = covered.grown(1, Size(mask.shape[1], mask.shape[0]))  # nothing beyond is nearer than that pixel
    shrunk = mask.copy()
    shrunk[box.slices()] = invert(grow(invert(mask[box.slices()]), radius))
    return shrunk


def feather(mask: Mask, radius: int) -> Mask:
    """Return the mask with a soft edge outside what is covered, which is where the mask isn't 0.

    Covered pixels keep their value. Others get that of the nearest covered one, times a smooth fall from 1 at its edge
    (half a pixel from its centre) to 0 at `radius` pixels from that; none farther than `radius` gets any.
    """
    covered = bounds(mask)
    if covered is None or radius < 1:
        return mask.copy()
    box = covered.grown(radius, Size(mask.shape[1], mask.shape[0]))
    part = np.ascontiguousarray(mask[box.slices()])
    distance = _distance(part > 0)
    left = np.clip(1 - (distance - 0.5) / radius, 0, 1)
    fall = left * left * (3 - 2 * left)
    fall[distance > _just_above(radius)] = 0
    soft = np.where(part > 0, part, np.rint(_nearest_value(part) * fall)).astype(np.uint8)
    feathered = mask.copy()
    feathered[box.slices()] = soft
    return feathered


def _nearest_value(part: Mask) -> NDArray[np.float32]:
    """Return (height, width) float32: the value of each pixel's nearest covered one."""
    values = np.unique(part[part > 0])
    if len(values) == 1:
        return np.full(part.shape, values[0], np.float32)
    outside = np.where(part > 0, np.uint8(0), np.uint8(1))
    _, labels = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL)
    value_of_label = np.zeros(int(labels.max()) + 1, np.float32)
    value_of_label[labels[part > 0]] = part[part > 0]
    nearest: NDArray[np.float32] = value_of_label[labels]
    return nearest


def combine(masks: Sequence[Mask], how: Literal["union", "intersection", "difference"]) -> Mask:
    """Return one mask of several: the maximum; the minimum; the minimum of the first and the others' inverses.

    Raises BadMask if there is none, or if their sizes differ.
    """
    if not masks:
        raise BadMask("no mask was given; send at least one", field="masks")
    for index, mask in enumerate(masks):
        if mask.shape != masks[0].shape:
            raise BadMask(
                f"mask {index} is {mask.shape[1]} × {mask.shape[0]}, mask 0 {masks[0].shape[1]} × "
                f"{masks[0].shape[0]}; send masks of one size",
                field=f"masks[{index}]",
            )
    result = masks[0].copy()
    for mask in masks[1:]:
        if how == "union":
            np.maximum(result, mask, out=result)
        elif how == "intersection":
            np.minimum(result, mask, out=result)
        else:
            np.minimum(result, invert(mask), out=result)
    return result


def bounds(mask: Mask) -> Box | None:
    """Return the smallest box around all that isn't 0, or None."""
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask))
    return Box(x, y, width, height) if width else None


def neighbourhoods(mask: Mask, margin: int | Callable[[Box], int]) -> list[Box]:
    """Return boxes around connected holes (where the mask isn't 0), grown by `margin` inside the picture, overlapping
    ones merged until none overlap; from the top, then the left. `margin` may depend on the hole's box."""
    size = Size(mask.shape[1], mask.shape[0])
    return merged([box.grown(margin(box) if callable(margin) else margin, size) for box in holes(mask)])


def holes(mask: Mask) -> list[Box]:
    """Return the boxes of connected holes (where the mask isn't 0), which may overlap.

    Of more than a few thousand holes (noise) those near each other share a box: time stays bounded.
    """
    covered = bounds(mask)
    if covered is None:
        return []
    part = (mask[covered.slices()] > 0).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(part, connectivity=8)
    found = stats[1:, :4].astype(np.int64)
    found[:, 2:] += found[:, :2]  # left, top, right, bottom
    if len(found) > _MANY_HOLES:
        found = _gathered(found)
    found += (covered.x, covered.y, covered.x, covered.y)
    return [Box(left, top, right - left, bottom - top) for left, top, right, bottom in found.tolist()]


def _gathered(holes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the boxes (n, 4) around those holes (m, 4) whose middles share a cell of a grid of 64 × 64."""
    middles = holes[:, :2] + holes[:, 2:]  # doubled
    cells = middles * 64 // (middles.max(axis=0) + 1)
    cell = cells[:, 1] * 64 + cells[:, 0]
    order = np.argsort(cell, kind="stable")
    firsts = np.flatnonzero(np.diff(cell[order], prepend=-1))
    sides = holes[order]
    return np.hstack([np.minimum.reduceat(sides[:, :2], firsts), np.maximum.reduceat(sides[:, 2:], firsts)])


def merged(boxes: Sequence[Box]) -> list[Box]:
    """Return boxes that cover the given ones and don't overlap; from the top, then the left."""
    apart = np.empty((0, 4), np.int64)  # left, top, right, bottom of boxes that don't overlap
    for box in boxes:
        new = np.array([box.x, box.y, box.right, box.bottom], np.int64)
        while True:
            touched = (apart[:, :2] < new[2:]).all(axis=1) & (apart[:, 2:] > new[:2]).all(axis=1)
            if not touched.any():
                break
            new = np.concatenate(
                [
                    np.minimum(new[:2], apart[touched, :2].min(axis=0)),
                    np.maximum(new[2:], apart[touched, 2:].max(axis=0)),
                ]
            )
            apart = apart[~touched]
        apart = np.vstack([apart, new])
    joined = [Box(left, top, right - left, bottom - top) for left, top, right, bottom in apart.tolist()]
    return sorted(joined, key=lambda box: (box.y, box.x))
