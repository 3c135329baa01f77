"""Enlarges pictures of any size, depth and channels by a network that takes small RGB tiles. Knows no engine and no
particular network: it is given one as a function.

The picture is cut into overlapping tiles that fade into each other (`limner.core.tiles`), so memory is the result's
own and little more. Everything is in floats until a tile is put in its place, so 16 bits stay 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.core.geometry import Size, padding_to_multiple
from limner.core.picture import Picture, Pixels
from limner.core.resample import pad_reflect, resize
from limner.core.tiles import Tile, assemble, tiles
from limner.runtime.job import Job

SIDE_MULTIPLE = 16
"""Tiles' sides are multiples of this, so that an engine meets few shapes, whatever it does for each new one."""

DRIFT_SIGMA = 4.0
"""Standard deviation, in pixels of the source, of what counts as colour rather than as detail."""


@dataclass(frozen=True)
class Network:
    """What enlarges one tile.

    `run` takes (1, 3, height, width) float32 RGB in [0, 1] and returns (1, 3, height * factor, width * factor), about
    in [0, 1], for any height and width that are multiples of SIDE_MULTIPLE.
    """

    run: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    factor: int
    overlap: int  # pixels that neighbouring tiles share, enough that their edges don't show
    largest_tile: int  # the largest side of a tile: bounds memory, and how long a cancelled call goes on


def enlarge(picture: Picture, size: Size, network: Network, job: Job) -> Picture:
    """Return `picture` in `size`, of the same channels and depth, enlarged by the network and resampled to `size`.

    Alpha is resampled by Lanczos: a network that invents detail would invent it in the outline too, at the price of a
    second run. Grey pictures go through the network as three equal channels and come back as their mean.
    """
    filled = _visible_colours(picture)
    colour = filled if filled.shape[2] == 3 else np.repeat(filled, 3, axis=2)
    padded = _padded(colour, network)
    scale = _working_scale(picture.size, size, network.factor)
    layout = _layout(Size(padded.shape[1], padded.shape[0]), network)
    with job.stage("upscale", len(layout)) as step:

        def parts() -> Iterator[tuple[Tile, NDArray[np.float32]]]:
            for done, tile in enumerate(layout, start=1):
                yield tile, _enlarge_tile(padded[tile.box.slices()], scale, network)
                step(done)

        enlarged = assemble(parts(), Size(padded.shape[1], padded.shape[0]), scale=scale, dtype=colour.dtype)
    enlarged = enlarged[: picture.height * scale, : picture.width * scale]
    if filled.shape[2] == 1:
        enlarged = np.rint(enlarged.mean(axis=2, keepdims=True, dtype=np.float32)).astype(colour.dtype)
    enlarged = resize(np.ascontiguousarray(enlarged), size, method="lanczos")
    alpha = picture.alpha()
    if alpha is not None:
        enlarged = np.concatenate([enlarged, resize(alpha[:, :, None], size, method="lanczos")], axis=2)
    return picture.with_pixels(enlarged)


def _enlarge_tile(pixels: Pixels, scale: int, network: Network) -> NDArray[np.float32]:
    """Return (height * scale, width * scale, 3) float32 in the range of `pixels`, which are (height, width, 3)."""
    height, width = pixels.shape[:2]
    maximum = np.iinfo(pixels.dtype).max
    source = pixels.astype(np.float32) / np.float32(maximum)
    (planes,) = network.run(np.ascontiguousarray(source.transpose(2, 0, 1)[None]))
    enlarged: NDArray[Any] = np.clip(planes.transpose(1, 2, 0), 0, 1)
    if enlarged.shape != (height * network.factor, width * network.factor, 3):
        raise ValueError(f"the network made {planes.shape} of a tile of {source.shape}")
    drift = _drift(source, enlarged)
    size = (width * scale, height * scale)
    if scale != network.factor:
        enlarged = cv2.resize(enlarged, size, interpolation=cv2.INTER_AREA)
    enlarged += cv2.resize(drift, size, interpolation=cv2.INTER_LINEAR)
    scaled: NDArray[np.float32] = np.clip(enlarged, 0, 1) * np.float32(maximum)
    return scaled


def _drift(source: NDArray[np.float32], enlarged: NDArray[np.float32]) -> NDArray[Any]:
    """Return (height, width, 3) float32: what must be added so that colours stay those of the source.

    The networks brighten or darken whole areas by several levels. Reduced again, the result should be the source
    (Irani and Peleg, "Improving Resolution by Image Registration", 1991); only the low frequencies of the difference
    are given back, as the rest is the noise and blur that the network is there to remove.
    """
    reduced = cv2.resize(enlarged, source.shape[1::-1], interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(source - reduced, (0, 0), DRIFT_SIGMA)


def _visible_colours(picture: Picture) -> Pixels:
    """Return (height, width, 1 or 3) where fully transparent pixels have the colour of the nearest visible one, so
    that no hidden colour gets into the outline."""
    colour, alpha = picture.colour(), picture.alpha()
    if alpha is None or alpha.all() or not alpha.any():
        return colour
    hidden = np.where(alpha == 0, np.uint8(1), np.uint8(0))
    _, labels = cv2.distanceTransformWithLabels(hidden, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL)
    colour_of_label = np.zeros((int(labels.max()) + 1, colour.shape[2]), colour.dtype)
    colour_of_label[labels[hidden == 0]] = colour[hidden == 0]
    filled: Pixels = colour_of_label[labels]
    return filled


def _padded(colour: Pixels, network: Network) -> Pixels:
    """Return `colour` with sides that are multiples of SIDE_MULTIPLE where the picture is smaller than a tile."""
    height, width = colour.shape[:2]
    multiple = padding_to_multiple(Size(width, height), SIDE_MULTIPLE)
    return pad_reflect(
        colour,
        Size(
            multiple.width if width < network.largest_tile else width,
            multiple.height if height < network.largest_tile else height,
        ),
    )


def _layout(size: Size, network: Network) -> list[Tile]:
    """Return the tiles that give the network the fewest pixels to work on; of equals the largest tiles."""
    smallest = min(network.largest_tile, max(2 * network.overlap, 4 * SIDE_MULTIPLE))
    sides = range(network.largest_tile, smallest - 1, -SIDE_MULTIPLE)
    layouts = (tiles(size, side, network.overlap) for side in sides)
    return min(layouts, key=lambda layout: sum(tile.box.area for tile in layout))


def _working_scale(source: Size, target: Size, factor: int) -> int:
    """Return the smallest divisor of `factor` that is not below the scale asked for, else `factor`.

    Tiles are reduced to it, which is exact, before they are put together: for twice the size by a network of factor 4
    memory is a quarter."""
    divisors = [divisor for divisor in range(1, factor + 1) if factor % divisor == 0]
    enough = (d for d in divisors if source.width * d >= target.width and source.height * d >= target.height)
    return next(enough, factor)
