from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from limner.core.geometry import Size
from limner.core.tiles import assemble, tiles

sides = st.integers(1, 150)


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Size, int, int]:
    size, tile = Size(draw(sides), draw(sides)), draw(st.integers(1, 60))
    overlap = draw(st.integers(0, tile - 1))
    assume(size.pixels < 400 * (tile - overlap) ** 2)  # few enough to be quick
    return size, tile, overlap


@given(tilings(), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_weights_of_all_tiles_sum_to_one_everywhere(tiling: tuple[Size, int, int], scale: int) -> None:
    size, tile, overlap = tiling
    total = np.zeros((size.height * scale, size.width * scale))
    for part in tiles(size, tile, overlap):
        box = part.box
        weights = part.weights(scale)
        assert weights.min() >= 0
        assert weights.max() <= 1
        total[box.y * scale : box.bottom * scale, box.x * scale : box.right * scale] += weights
    assert np.abs(total - 1).max() < 1e-5


@given(tilings(), st.integers(1, 3), st.sampled_from([np.uint8, np.uint16]))
@settings(deadline=None, max_examples=60)
def test_tiles_put_together_are_the_picture(tiling: tuple[Size, int, int], scale: int, dtype: type) -> None:
    size, tile, overlap = tiling
    picture = np.random.default_rng(0).integers(
        0, np.iinfo(dtype).max, (size.height, size.width, 3), dtype, endpoint=True
    )

    def enlarged(pixels: np.ndarray) -> np.ndarray:
        return pixels.repeat(scale, axis=0).repeat(scale, axis=1)

    parts = ((part, enlarged(picture[part.box.slices()])) for part in tiles(size, tile, overlap))
    assert np.array_equal(assemble(parts, size, scale=scale, dtype=dtype), enlarged(picture))


@given(tilings())
@settings(deadline=None, max_examples=60)
def test_tiles_have_one_shape_stay_inside_and_overlap_as_asked(tiling: tuple[Size, int, int]) -> None:
    size, tile, overlap = tiling
    boxes = [part.box for part in tiles(size, tile, overlap)]
    assert {(box.width, box.height) for box in boxes} == {(min(tile, size.width), min(tile, size.height))}
    assert all(box.x >= 0 and box.y >= 0 and box.right <= size.width and box.bottom <= size.height for box in boxes)
    starts = sorted({box.x for box in boxes})
    assert all(after + overlap <= before + tile for before, after in pairwise(starts))


def test_steps_between_tiles_are_faded_over() -> None:
    size = Size(200, 40)
    parts = [(part, np.full((40, 64, 1), 100.0 + 20 * (index % 2))) for index, part in enumerate(tiles(size, 64, 32))]
    row = assemble(parts, size)[20, :, 0].astype(int)
    assert (row.min(), row.max()) == (100, 120)
    assert np.abs(np.diff(row)).max() <= 3


def test_what_tiles_see_at_their_rims_is_thrown_away() -> None:
    size = Size(300, 300)
    parts = []
    for part in tiles(size, 100, 40):
        result = np.full((100, 100, 1), 50.0)
        rim = np.ones((100, 100), bool)
        rim[8:-8, 8:-8] = False
        inner_rim = rim.copy()
        if part.box.x == 0:
            inner_rim[8:-8, :8] = False
        if part.box.y == 0:
            inner_rim[:8, 8:-8] = False
        if part.box.right == size.width:
            inner_rim[8:-8, -8:] = False
        if part.box.bottom == size.height:
            inner_rim[-8:, 8:-8] = False
        result[inner_rim] = 255
        parts.append((part, result))
    assert (assemble(parts, size)[8:-8, 8:-8] == 50).all()


def test_overshoot_of_tiles_is_clipped() -> None:
    size = Size(10, 10)
    for value, wanted in ((-5.0, 0), (300.0, 255)):
        parts = [(part, np.full((10, 10, 3), value)) for part in tiles(size, 64, 8)]
        assert (assemble(parts, size) == wanted).all()


@pytest.mark.parametrize(("tile", "overlap"), [(8, 8), (8, -1), (0, 0)])
def test_overlaps_that_leave_no_step_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        tiles(Size(20, 20), tile, overlap)
