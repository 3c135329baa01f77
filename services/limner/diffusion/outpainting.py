"""Extending a picture: a larger canvas, what is laid under its new area before the model begins, and the seam.

The new area first continues the picture: its mirror image, the more blurred the farther from it, so that colours and
light go on while nothing is seen twice. The model makes the new area anew, and, as far as the seam is feathered, the
picture's edge. Knows no model, only what kinds of it take.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.core.errors import BadArgument
from limner.core.geometry import Box, Size
from limner.core.mask import Mask, bounds
from limner.core.picture import Picture, Pixels
from limner.diffusion.editing import Asked, Change, Frame, framed, seen
from limner.diffusion.variant import Variant

LEAST_CONTEXT = 256  # pixels of the picture beside a new side that the model sees
_BLURS = (2, 8, 32, 128)  # standard deviations in pixels; each rules about twice as far from the picture


@dataclass(frozen=True)
class Sides:
    """How many pixels are added on each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def around(self, size: Size) -> Size:
        """Return the size of a picture with the sides."""
        return Size(self.left + size.width + self.right, self.top + size.height + self.bottom)

    @property
    def longest(self) -> int:
        """The most that is added anywhere."""
        return max(self.left, self.top, self.right, self.bottom)


def extend(picture: Picture, sides: Sides, variant: Variant, *, feathered: int, asked: Asked) -> Change:
    """Return the larger picture and how the model is to see it: the new area, with as much of the picture beside it as
    is added, at least 256 pixels, and more as long as that is no larger than what the model usually makes.

    The seam is blended `feathered` pixels into the picture; all beyond keeps its pixels. New pixels are opaque.
    Raises BadArgument if nothing is added, and for a size asked for that the model doesn't take.
    """
    if not sides.longest:
        raise BadArgument("options: no side is extended; give left_px, top_px, right_px or bottom_px", field="options")
    size, whole = picture.size, sides.around(picture.size)
    canvas = picture.with_pixels(_padded(picture, sides))
    frame = framed(_seen(size, sides, variant), whole, variant, asked)
    known = _reduced(Box(sides.left, sides.top, size.width, size.height), frame)
    return Change(canvas, seam(size, sides, feathered), frame, continued(seen(canvas, frame), known))


def seam(size: Size, sides: Sides, feathered: int) -> Mask:
    """Return 255 on the sides of a picture and 0 on the picture itself, (height, width) of both. The first `feathered`
    pixels of the picture lie between, as `limner.core.mask.feather` has it, which would need the picture's memory many
    times over."""
    across = _fall(size.width, sides.left, sides.right, feathered)
    down = _fall(size.height, sides.top, sides.bottom, feathered)
    return np.maximum(down[:, None], across[None, :])


def _fall(length: int, before: int, after: int, feathered: int) -> NDArray[np.uint8]:
    """Return (before + length + after,) from 255 outside to 0 inside; a side without anything new has no seam."""
    place = np.arange(-before, length + after)
    far = length + feathered + 1
    from_new = np.minimum(place + 1 if before else far, length - place if after else np.full_like(place, far))
    left = np.clip(1 - (from_new - 0.5) / max(feathered, 1), 0, 1)
    fall = np.rint(255 * (left * left * (3 - 2 * left)))
    fall[from_new > feathered] = 0
    return fall.astype(np.uint8)


def _seen(size: Size, sides: Sides, variant: Variant) -> Box:
    """Return what of the canvas the model sees."""
    whole = sides.around(size)
    new = bounds(seam(size, sides, 0))
    assert new is not None
    context = max(LEAST_CONTEXT, sides.longest)
    usual = variant.width * variant.height
    low, high = context, max(context, size.width, size.height)
    while low < high:  # bisection
        middle = (low + high + 1) // 2
        low, high = (middle, high) if new.grown(middle, whole).area <= usual else (low, middle - 1)
    return new.grown(low, whole)


def _padded(picture: Picture, sides: Sides) -> Pixels:
    """Return the picture's pixels with the sides, opaque there, for the model to fill. They have the colours of the
    picture's edge, as reducing and enlarging mix them with it."""
    added = ((sides.top, sides.bottom), (sides.left, sides.right), (0, 0))
    canvas = np.pad(picture.pixels, added, mode="edge")
    if picture.has_alpha:
        canvas[seam(picture.size, sides, 0) > 0, -1] = picture.maximum
    return canvas


def _reduced(known: Box, frame: Frame) -> Box:
    """Return where a box of the canvas is in what the model sees, pixels that are in it as a whole."""

    def part(start: int, end: int, first: int, length: int, seen: int, side: int) -> tuple[int, int]:
        scale = seen / length
        low = ceil(max(0, start - first) * scale)
        high = int((end - first) * scale)
        # The mirror image at the right and at the bottom is of the picture where the picture goes on to there.
        return min(low, seen - 1), max(side if high >= seen else high, low + 1)

    left, right = part(known.x, known.right, frame.box.x, frame.box.width, frame.seen.width, frame.size.width)
    top, bottom = part(known.y, known.bottom, frame.box.y, frame.box.height, frame.seen.height, frame.size.height)
    return Box(left, top, right - left, bottom - top)


def continued(pixels: NDArray[np.uint8], known: Box) -> NDArray[np.uint8]:
    """Return (height, width, 3) with what lies outside `known` continuing it: its mirror image, blurred with the
    distance. What is outside does not count."""
    height, width = pixels.shape[:2]
    inside = pixels[known.slices()]
    added = ((known.y, height - known.bottom), (known.x, width - known.right), (0, 0))
    mirror = np.pad(inside, added, mode="symmetric").astype(np.float32)
    outside = np.ones((height, width), np.uint8)
    outside[known.slices()] = 0
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    level = np.log2(1 + distance / _BLURS[0])[:, :, None]
    shown = mirror.copy()
    for index, deviation in enumerate(_BLURS):
        share = np.clip(level / 2 - index, 0, 1)  # each blur is four times the one before, two levels on
        shown += (_blurred(mirror, deviation) - shown) * share
    canvas = np.rint(shown).astype(np.uint8)
    canvas[known.slices()] = inside
    return canvas


def _blurred(pixels: NDArray[np.float32], deviation: float) -> NDArray[np.float32]:
    """Return (height, width, channels) blurred by a Gaussian; large ones are made on a smaller picture."""
    height, width = pixels.shape[:2]
    factor = max(1, int(deviation // 4))
    small = cv2.resize(pixels, (max(1, width // factor), max(1, height // factor)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), deviation / factor, borderType=cv2.BORDER_REPLICATE)
    blurred = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_NEAREST)
    return np.asarray(blurred, np.float32).reshape(pixels.shape)
