"""Changing a picture: the part of it that a model sees, at a size that the model takes, and back into the picture.

The model sees a masked area with its surroundings, at full size as long as that is no more than it takes, or the whole
picture where nothing is masked. What comes back is blended in by the mask, so that all else stays bit-identical. Knows
no model, only what kinds of it take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.core.blend import blend
from limner.core.errors import BadArgument
from limner.core.geometry import Box, Size, padding_to_multiple
from limner.core.mask import Mask, bounds, check_mask
from limner.core.picture import Picture, Pixels, eight_bits, sixteen_bits
from limner.core.resample import pad_reflect, resize
from limner.diffusion.sizes import fault, fitted, offered
from limner.diffusion.variant import Variant

LEAST_MARGIN = 64  # pixels around a masked area that the model sees, if nobody says how many
LATENT = 8  # pixels a side of what a model makes anew at once


@dataclass(frozen=True)
class Asked:
    """The size that a request asks the model to work at; None: one that fits."""

    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class Frame:
    """The part of a picture that a model sees. At the right and at the bottom of what it sees there may be a mirror
    image of it, which only fills up its size.

    Frame(Box(300, 200, 512, 512), Size(512, 512), Size(512, 512))      # at full size
    Frame(Box(0, 0, 4000, 3000), Size(1024, 768), Size(1024, 768))      # reduced
    Frame(Box(0, 0, 1000, 700), Size(1000, 700), Size(1008, 704))       # the model takes multiples of 16
    """

    box: Box  # in the picture
    seen: Size  # of the box, as the model sees it
    size: Size  # that the model works at, at least `seen`

    def cut(self, pixels: Pixels) -> Pixels:
        """Return what the model sees of (height, width, channels): of its size and the same dtype."""
        part = np.ascontiguousarray(pixels[self.box.slices()])
        smaller = self.seen.pixels < self.box.area
        return pad_reflect(resize(part, self.seen, method="area" if smaller else "lanczos"), self.size)

    def covered(self, mask: Mask) -> NDArray[np.float32]:
        """Return where the model makes something new, (height, width) of its size: 1 in all of a latent's pixels if the
        mask isn't 0 anywhere under them, 0 elsewhere."""
        hole = np.where(mask[self.box.slices()] > 0, np.uint8(255), np.uint8(0))[:, :, None]
        seen = pad_reflect(resize(hole, self.seen, method="linear"), self.size)[:, :, 0] > 0
        rows, columns = self.size.height // LATENT, self.size.width // LATENT
        latents = seen.reshape(rows, LATENT, columns, LATENT).any(axis=(1, 3))
        return np.kron(latents, np.ones((LATENT, LATENT))).astype(np.float32)

    def shown(self, made: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (height, width, 3), a picture of the model at any scale, without the mirror image."""
        height, width = made.shape[:2]
        right = max(1, round(width * self.seen.width / self.size.width))
        bottom = max(1, round(height * self.seen.height / self.size.height))
        return made[:bottom, :right]


@dataclass(frozen=True, eq=False)
class Change:
    """A picture, what of it is to be made anew, and how a model comes to see that."""

    picture: Picture
    mask: Mask | None  # None: all of it
    frame: Frame
    image: NDArray[np.uint8]  # what the model is to begin with: (height, width, 3) of its size, without alpha

    @property
    def hole(self) -> NDArray[np.float32] | None:
        """Where the model makes something new: (height, width) of its size, 0 or 1; None: everywhere."""
        return None if self.mask is None else self.frame.covered(self.mask)

    def result(self, made: NDArray[np.uint8]) -> Picture:
        """Return the picture with what the model made of it, (height, width, 3) of its size. Depth, alpha, and
        whatever the mask leaves at 0 are the picture's own."""
        box = self.frame.box
        fresh = resize(np.ascontiguousarray(self.frame.shown(made)), box.size, method="lanczos")
        mask = np.full((box.height, box.width), 255, np.uint8) if self.mask is None else self.mask[box.slices()]
        own = Picture(self.picture.pixels[box.slices()])
        pixels = self.picture.pixels.copy()
        pixels[box.slices()] = blend(own, _as(self.picture, fresh), mask).pixels
        return self.picture.with_pixels(pixels)

    @property
    def reason(self) -> str:
        """Say what the model sees, for people."""
        box, size = self.frame.box, self.frame.size
        part = "the whole picture" if box.size == self.picture.size else f"{_words(box.size)} of it"
        return f"the model sees {part} at {_words(size)}"


def change(picture: Picture, mask: Mask | None, variant: Variant, *, margin: int | None = None, asked: Asked) -> Change:
    """Return how the model is to see what the mask, (height, width) uint8, covers, or the whole picture without one.

    `margin` is how far around the mask it sees; by default half of the longer side of what is covered, at least 64
    pixels. Raises BadMask for a mask of another size than the picture's, or one that covers nothing, and BadArgument
    for a size asked for that the model doesn't take.
    """
    if mask is None:
        frame = frame_of(Box(0, 0, picture.width, picture.height), variant, asked)
        return Change(picture, None, frame, seen(picture, frame))
    check_mask(mask, picture.size)
    hole = bounds(mask)
    assert hole is not None
    around = max(LEAST_MARGIN, max(hole.width, hole.height) // 2) if margin is None else margin
    frame = framed(hole.grown(around, picture.size), picture.size, variant, asked)
    return Change(picture, mask, frame, seen(picture, frame))


def seen(picture: Picture, frame: Frame) -> NDArray[np.uint8]:
    """Return (height, width, 3) of the model's size: what it sees of a picture, without alpha."""
    colours = picture.channels - picture.has_alpha
    colour = eight_bits(frame.cut(picture.pixels[:, :, :colours]))
    return colour if colours == 3 else np.repeat(colour, 3, axis=2)


def framed(box: Box, within: Size, variant: Variant, asked: Asked) -> Frame:
    """Return how a model sees a box of a picture, which is grown, as far as the picture goes, to a size that the model
    takes and to the shape that is asked for. Raises BadArgument as `change`."""
    if asked.width and asked.height:
        wanted = _of_shape(box.size, asked.width / asked.height)
    else:
        wanted = padding_to_multiple(_enough(box.size, variant.min_pixels, within), variant.size_multiple)
    return frame_of(moved_in(box, wanted, within), variant, asked)


def moved_in(box: Box, size: Size, within: Size) -> Box:
    """Return a box of `size`, or as much of it as the picture has, around another one."""
    width, height = min(max(size.width, box.width), within.width), min(max(size.height, box.height), within.height)
    x = min(max(0, box.x - (width - box.width) // 2), within.width - width)
    y = min(max(0, box.y - (height - box.height) // 2), within.height - height)
    return Box(x, y, width, height)


def frame_of(box: Box, variant: Variant, asked: Asked) -> Frame:
    """Return how a model sees a box, and nothing more of the picture."""
    if not asked.width and not asked.height:
        seen, size = fitted(box.size, variant)
        return Frame(box, seen, size)
    factor = min(
        asked.width / box.width if asked.width else math.inf, asked.height / box.height if asked.height else math.inf
    )
    seen = box.size.scaled(factor)
    size = padding_to_multiple(seen, variant.size_multiple)
    size = Size(asked.width or size.width, asked.height or size.height)
    if wrong := fault(size, variant):
        field = "options.generate.width_px" if asked.width else "options.generate.height_px"
        raise BadArgument(f"{field}: {wrong}", field=field, metadata=offered(size, variant))
    return Frame(box, Size(min(seen.width, size.width), min(seen.height, size.height)), size)


def _enough(size: Size, pixels: int, within: Size) -> Size:
    """Return at least `size` with so many pixels, as square as the picture allows."""
    side = math.ceil(math.sqrt(pixels))
    if size.width < size.height:
        turned = _enough(Size(size.height, size.width), pixels, Size(within.height, within.width))
        return Size(turned.height, turned.width)
    if size.pixels >= pixels:
        return size
    width = min(max(size.width, side), within.width)
    height = min(max(size.height, math.ceil(pixels / width)), within.height)
    return Size(min(max(width, math.ceil(pixels / height)), within.width), height)


def _of_shape(size: Size, shape: float) -> Size:
    """Return the least size of so much width for its height that holds another one."""
    return Size(max(size.width, round(size.height * shape)), max(size.height, round(size.width / shape)))


def _as(picture: Picture, rgb: NDArray[np.uint8]) -> Pixels:
    """Return (height, width, 3) with the colours and the depth of a picture."""
    grey = picture.channels < 3
    colour = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))[:, :, None] if grey else rgb
    return colour if picture.bit_depth == 8 else sixteen_bits(colour)


def _words(size: Size) -> str:
    return f"{size.width} × {size.height}"
