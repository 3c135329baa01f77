"""Fills made at a reduced size get the detail that the rest of the picture has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from limner.core.errors import Cancelled
from limner.core.geometry import Box, Size
from limner.core.resample import resize
from limner.inpaint.detail import enlarged_with_detail

HOLE = Box(150, 100, 90, 80)


def never() -> None:
    """The check of a call that is never over."""


def hole_of(height: int, width: int) -> NDArray[np.bool_]:
    hole = np.zeros((height, width), np.bool_)
    hole[HOLE.slices()] = True
    return hole


def grain(height: int, width: int, channels: int, dtype: type) -> NDArray[Any]:
    """Return a dark left and a bright right half, with fine noise on the right one only."""
    random = np.random.default_rng(3)
    base = np.where(np.arange(width) < 195, 60.0, 170.0)[None, :, None]
    noise = random.normal(0, 20, (height, width, channels)) * (base > 100)
    return np.clip((base + noise) * (np.iinfo(dtype).max / 255), 0, np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (1, np.uint16)])
def test_a_fill_has_the_grain_of_what_looks_like_it(channels: int, dtype: type) -> None:
    picture, hole = grain(300, 400, channels, dtype), hole_of(300, 400)
    filled = resize(picture, Size(100, 75), method="area")
    whole = enlarged_with_detail(filled, picture, hole, HOLE, never)
    assert whole.shape == (HOLE.height, HOLE.width, channels)
    assert whole.dtype == dtype
    dark, bright = whole[10:-10, 5:35].std(), whole[10:-10, 60:85].std()
    unit = np.iinfo(dtype).max / 255
    assert bright > 12 * unit  # enlarging alone leaves about 4
    assert dark < 2 * unit


def test_detail_under_the_hole_is_not_looked_at_not_even_of_dots() -> None:
    picture, hole = grain(300, 400, 3, np.uint8), hole_of(300, 400)
    random = np.random.default_rng(0)
    hole[random.integers(0, 300, 200), random.integers(0, 400, 200)] = True
    filled = resize(picture, Size(100, 75), method="area")
    other = np.where(hole[:, :, None], 255 - picture, picture)
    whole = Box(0, 0, 400, 300)
    results = [enlarged_with_detail(filled, pixels, hole, whole, never) for pixels in (picture, other)]
    assert (results[0] == results[1]).all()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_size_hole_and_part_is_enlarged(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    small = Size(data.draw(st.integers(1, width)), data.draw(st.integers(1, height)))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    hole = random.random((height, width)) < data.draw(st.sampled_from([0.0, 0.001, 0.1, 0.9]))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    part = Box(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    filled = resize(pixels, small, method="area")
    assert enlarged_with_detail(filled, pixels, hole, part, never).shape == (part.height, part.width, 3)


def test_it_ends_when_the_call_does() -> None:
    calls = []

    def third() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled("gone")

    picture, hole = grain(900, 900, 3, np.uint8), np.zeros((900, 900), np.bool_)
    hole[100:800, 100:800] = True
    with pytest.raises(Cancelled):
        enlarged_with_detail(
            resize(picture, Size(450, 450), method="area"), picture, hole, Box(100, 100, 700, 700), third
        )
