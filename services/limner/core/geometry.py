"""Sizes and boxes in whole pixels, from the top left corner. Knows no arrays: a box only says which part of one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Width and height in pixels.

    Size(1024, 768).scaled(2)  # Size(2048, 1536)
    """

    width: int
    height: int

    @property
    def pixels(self) -> int:
        """How many pixels."""
        return self.width * self.height

    def scaled(self, factor: float) -> Size:
        """Return both sides times `factor`, rounded, at least 1."""
        return Size(max(1, round(self.width * factor)), max(1, round(self.height * factor)))


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels; `right` and `bottom` are the first ones outside."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column right of the box."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """The first row below the box."""
        return self.y + self.height

    @property
    def area(self) -> int:
        """How many pixels."""
        return self.width * self.height

    @property
    def size(self) -> Size:
        """Width and height."""
        return Size(self.width, self.height)

    def slices(self) -> tuple[slice, slice]:
        """Return (rows, columns), which index arrays of shape (height, width, ...)."""
        return slice(self.y, self.bottom), slice(self.x, self.right)

    def grown(self, margin: int, within: Size) -> Box:
        """Return the box with `margin` more pixels on every side, as far as `within` has them."""
        left, top = max(0, self.x - margin), max(0, self.y - margin)
        right, bottom = min(within.width, self.right + margin), min(within.height, self.bottom + margin)
        return Box(left, top, right - left, bottom - top)

    def overlaps(self, other: Box) -> bool:
        """Say whether any pixel is in both."""
        return (
            self.x < other.right and other.x < self.right and self.y < other.bottom and other.y < self.bottom
        ) and min(self.area, other.area) > 0


def padding_to_multiple(size: Size, multiple: int, minimum: int = 1) -> Size:
    """Return the smallest size that holds `size`, whose sides are multiples of `multiple` and at least `minimum`.

    padding_to_multiple(Size(100, 64), 8)       # Size(104, 64)
    padding_to_multiple(Size(3, 3), 8, 12)      # Size(16, 16)
    """

    def padded(side: int) -> int:
        return -(-max(side, minimum) // multiple) * multiple

    return Size(padded(size.width), padded(size.height))
