"""The sizes that a model takes, and which of them is the nearest. Knows no pixels."""

from __future__ import annotations

import math

from limner.core.geometry import Size, padding_to_multiple
from limner.diffusion.variant import Variant

_SHAPE = 16  # how much more a factor in a size's shape counts than one in its pixels, squared


def is_legal(size: Size, variant: Variant) -> bool:
    """Say whether the model takes the size."""
    multiple, longest = variant.size_multiple, longest_side(variant)
    return (
        min(size.width, size.height) >= multiple
        and size.width % multiple == size.height % multiple == 0
        and max(size.width, size.height) <= longest
        and variant.min_pixels <= size.pixels <= variant.max_pixels
    )


def fault(size: Size, variant: Variant) -> str | None:
    """Return what is wrong with a size, and the nearest legal one; None if nothing is."""
    if is_legal(size, variant):
        return None
    other = nearest(size, variant)
    limit = f", sides of at most {longest_side(variant)}" if variant.max_side else ""
    return (
        f"{size.width} × {size.height} is no size for {variant.name}, which takes multiples of {variant.size_multiple}"
        f"{limit}, {variant.min_pixels / 1e6:.2g} to {variant.max_pixels / 1e6:.2g} megapixels; "
        f"the nearest is {other.width} × {other.height}"
    )


def offered(size: Size, variant: Variant) -> dict[str, str]:
    """Return the nearest legal size as metadata of an error."""
    other = nearest(size, variant)
    return {"nearest_width_px": str(other.width), "nearest_height_px": str(other.height)}


def nearest(size: Size, variant: Variant) -> Size:
    """Return the legal size that differs by the least factors, in its shape first of all and then in its pixels."""
    multiple, longest = variant.size_multiple, longest_side(variant)
    best, least = Size(variant.width, variant.height), math.inf
    for width in range(multiple, longest + 1, multiple):
        low = max(1, -(-variant.min_pixels // (width * multiple))) * multiple
        high = min(longest, variant.max_pixels // width) // multiple * multiple
        below = size.height // multiple * multiple
        for height in {min(max(below, low), high), min(max(below + multiple, low), high)} if low <= high else ():
            wider, higher = math.log(width / max(size.width, 1)), math.log(height / max(size.height, 1))
            distance = (wider + higher) ** 2 + _SHAPE * (wider - higher) ** 2
            if distance < least:
                best, least = Size(width, height), distance
    return best


def longest_side(variant: Variant) -> int:
    """Return the longest side there is: its own limit, or that of the pixels in a strip of the least height."""
    multiple = variant.size_multiple
    of_pixels = variant.max_pixels // multiple // multiple * multiple
    return min(variant.max_side // multiple * multiple, of_pixels) if variant.max_side else of_pixels


def fitted(size: Size, variant: Variant) -> tuple[Size, Size]:
    """Return (seen, legal): `size` with both sides times the same factor, the nearest to 1, and a legal size that holds
    it with as little around it as can be.

    fitted(Size(1000, 700), medium)     # Size(1000, 700), Size(1008, 704)
    fitted(Size(6000, 4000), medium)    # Size(1758, 1172), Size(1760, 1184)
    """
    multiple, longest = variant.size_multiple, longest_side(variant)

    def fits(factor: float) -> bool:
        held = padding_to_multiple(size.scaled(factor), multiple)
        return held.pixels <= variant.max_pixels and max(held.width, held.height) <= longest

    factor = max(1.0, math.sqrt(variant.min_pixels / size.pixels))
    if not fits(factor):
        low = 0.0
        for _ in range(40):  # bisection
            middle = (low + factor) / 2
            low, factor = (middle, factor) if fits(middle) else (low, middle)
        factor = low
    seen = size.scaled(factor)
    return seen, _holding(seen, variant)


def _holding(seen: Size, variant: Variant) -> Size:
    """Return the least legal size that holds one that isn't too large: strips are made less narrow."""
    multiple = variant.size_multiple
    held = padding_to_multiple(seen, multiple)
    if held.pixels >= variant.min_pixels:
        return held
    longer = max(held.width, held.height)
    shorter = math.ceil(variant.min_pixels / longer)
    return padding_to_multiple(Size(max(held.width, shorter), max(held.height, shorter)), multiple)
