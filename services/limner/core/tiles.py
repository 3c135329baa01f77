"""Large pictures in overlapping tiles, put together without seams. Knows no model.

A tile's outermost pixels are thrown away, since a network saw nothing beyond them, and between that and the middle it
fades into its neighbour, so that neither a step nor a doubled edge shows. Weights of all tiles sum to 1 everywhere.
Tiles come row by row, and only the row in work is kept in floats: rows that no later tile touches are rounded at once.
So memory is the result's own and one row of tiles'.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from limner.core.geometry import Box, Size


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels: where it is and where it fades. An empty fade lies at the picture's border."""

    start: int
    length: int
    fade_in: tuple[int, int]  # weight 0 before the first, 1 from the second on
    fade_out: tuple[int, int]  # weight 1 before the first, 0 from the second on

    def weights(self, scale: int = 1) -> NDArray[np.float32]:
        """Return (length * scale,) float32 in [0, 1]."""
        position = np.arange(self.start * scale, (self.start + self.length) * scale, dtype=np.float64) + 0.5
        return np.multiply(
            _rise(position, self.fade_in, scale), 1 - _rise(position, self.fade_out, scale), dtype=np.float32
        )


def _rise(position: NDArray[np.float64], fade: tuple[int, int], scale: int) -> NDArray[np.float64]:
    """Return a smooth step from 0 to 1 over the fade."""
    start, end = fade[0] * scale, fade[1] * scale
    if start == end:
        return (position > start).astype(np.float64)
    part = np.clip((position - start) / (end - start), 0, 1)
    return part * part * (3 - 2 * part)


@dataclass(frozen=True)
class Tile:
    """A part of a picture to work on alone."""

    columns: Span
    rows: Span

    @property
    def box(self) -> Box:
        """Where it is."""
        return Box(self.columns.start, self.rows.start, self.columns.length, self.rows.length)

    def weights(self, scale: int = 1) -> NDArray[np.float32]:
        """Return (height * scale, width * scale) float32 in [0, 1]: how much of the result is this tile's."""
        return self.rows.weights(scale)[:, None] * self.columns.weights(scale)[None, :]


def tiles(size: Size, tile: int, overlap: int) -> list[Tile]:
    """Return tiles that cover a picture, row by row from the top left.

    All are of one shape, `tile` × `tile`, or the picture's own side where that is less, spread evenly; neighbours
    share at least `overlap` pixels, of which half is the fade and a quarter on either side is thrown away.
    Raises ValueError unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"an overlap of {overlap} in tiles of {tile}")
    columns = _spans(size.width, tile, overlap)
    return [Tile(column, row) for row in _spans(size.height, tile, overlap) for column in columns]


def _spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Return the fewest spans of `tile` pixels, evenly spread, that cover `length` with the overlap asked for."""
    if length <= tile:
        return [Span(0, length, (0, 0), (length, length))]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [index * (length - tile) // (count - 1) for index in range(count)]
    apart = min(after - before for before, after in pairwise(starts))
    fade = min(-(-overlap // 2), apart)  # fades of one tile must not meet
    middles = [(before + tile + after) // 2 for before, after in pairwise(starts)]
    fades = [(0, 0), *((middle - fade // 2, middle - fade // 2 + fade) for middle in middles), (length, length)]
    return [Span(start, tile, fades[index], fades[index + 1]) for index, start in enumerate(starts)]


def assemble(
    parts: Iterable[tuple[Tile, NDArray[Any]]], size: Size, *, scale: int = 1, dtype: DTypeLike = np.uint8
) -> NDArray[Any]:
    """Return (size.height * scale, size.width * scale, channels) of `dtype` made of the tiles' results.

    `parts` gives every tile of `tiles(size, ...)` in order with its result, (tile height * scale, tile width * scale,
    channels) in the range of `dtype`, which is uint8 or uint16. `parts` may be a generator that makes one at a time.
    """
    maximum = np.iinfo(np.dtype(dtype)).max
    result: NDArray[Any] | None = None
    band: NDArray[np.float32] | None = None  # the row of tiles in work
    band_top = 0
    for tile, part in parts:
        if result is None or band is None:
            result = np.empty((size.height * scale, size.width * scale, part.shape[2]), dtype)
            band = np.zeros((tile.rows.length * scale, *result.shape[1:]), np.float32)
        top = tile.rows.start * scale
        if top > band_top:
            done = top - band_top
            result[band_top:top] = np.rint(np.clip(band[:done], 0, maximum))
            band = np.concatenate([band[done:], np.zeros_like(band[:done])])
            band_top = top
        left = tile.columns.start * scale
        band[:, left : left + part.shape[1]] += part * tile.weights(scale)[:, :, None]
    if result is None or band is None:
        raise ValueError("no tiles to assemble")
    result[band_top:] = np.rint(np.clip(band, 0, maximum))
    return result
