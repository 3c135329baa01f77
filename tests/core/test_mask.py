import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.core import mask as masks
from limner.core.errors import BadMask
from limner.core.geometry import Box, Size
from limner.core.picture import Picture

seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 40)


@st.composite
def any_mask(draw: st.DrawFn) -> np.ndarray:
    """Black and white or grey, from empty to full, from one pixel up."""
    random = np.random.default_rng(draw(seeds))
    shape = draw(sides), draw(sides)
    covered = random.random(shape) < draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
    grey = random.integers(1, 256, shape) if draw(st.booleans()) else 255
    return np.where(covered, grey, 0).astype(np.uint8)


def brute_force_grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """The greatest value among all pixels whose distance is at most the radius, one offset at a time."""
    padded = np.pad(mask, radius)
    height, width = mask.shape
    grown = np.zeros_like(mask)
    for y in range(-radius, radius + 1):
        for x in range(-radius, radius + 1):
            if x * x + y * y <= radius * radius:
                np.maximum(grown, padded[radius + y :, radius + x :][:height, :width], out=grown)
    return grown


@given(any_mask(), st.integers(1, 12))
@settings(deadline=None)
def test_growing_equals_brute_force_over_the_disc(mask: np.ndarray, radius: int) -> None:
    before = mask.copy()
    assert np.array_equal(masks.grow(mask, radius), brute_force_grow(mask, radius))
    assert np.array_equal(mask, before)


@given(any_mask(), st.integers(1, 12))
@settings(deadline=None)
def test_shrinking_mirrors_growing_and_the_border_does_not_eat(mask: np.ndarray, radius: int) -> None:
    assert np.array_equal(masks.shrink(mask, radius), 255 - brute_force_grow(255 - mask, radius))


def test_a_full_mask_does_not_shrink() -> None:
    full = np.full((9, 5), 255, np.uint8)
    assert np.array_equal(masks.shrink(full, 1024), full)


@pytest.mark.parametrize("radius", [50, 400, 800])
def test_large_discs_are_exact(radius: int) -> None:
    mask = np.zeros((2, 1100), np.uint8)
    mask[0, 10] = 255
    grown = masks.grow(mask, radius)
    assert grown[0, 10 + radius] == 255
    assert not grown[0, 11 + radius :].any()
    # One row further down the disc is one pixel narrower: the next distance after the radius isn't in it.
    assert not grown[1, 10 + radius :].any()
    assert grown[1, 9 + radius] == 255


@given(any_mask(), st.integers(1, 20))
@settings(deadline=None)
def test_feathering_never_lowers_and_stays_within_the_radius(mask: np.ndarray, radius: int) -> None:
    soft = masks.feather(mask, radius)
    assert (soft >= mask).all()
    assert np.array_equal(soft[mask > 0], mask[mask > 0])
    assert not soft[brute_force_grow(mask, radius) == 0].any()


def test_feathering_falls_smoothly_and_evenly_on_all_sides() -> None:
    mask = np.zeros((41, 41), np.uint8)
    mask[20, 20] = 255
    soft = masks.feather(mask, 16).astype(int)
    slope = np.diff(soft[20, 20:])
    assert (slope[:15] < 0).all()
    assert np.abs(np.diff(slope)).max() <= 6  # no kink
    assert np.array_equal(soft, soft.T)
    assert np.array_equal(soft, soft[::-1])
    assert soft[20, 36] < 4


def test_growing_time_follows_the_mask_and_not_the_radius() -> None:
    mask = np.zeros((3000, 4000), np.uint8)
    mask[1000:1100, 1000:1100] = 255

    def seconds(radius: int) -> float:
        start = time.thread_time()
        masks.grow(mask, radius)
        return time.thread_time() - start

    seconds(1)
    # The surroundings are 100 times larger; a kernel's cost would grow 100 × 10 000 times.
    assert seconds(500) < 1.0


@given(any_mask())
def test_inverting_twice_is_nothing(mask: np.ndarray) -> None:
    assert np.array_equal(masks.invert(masks.invert(mask)), mask)
    assert np.array_equal(masks.invert(mask), 255 - mask)


def test_thresholds_are_exclusive() -> None:
    mask = np.array([[0, 127, 128, 255]], np.uint8)
    assert masks.threshold(mask).tolist() == [[0, 0, 255, 255]]
    assert masks.threshold(mask, 0).tolist() == [[0, 255, 255, 255]]
    assert masks.threshold(mask, 254).tolist() == [[0, 0, 0, 255]]


def test_combinations() -> None:
    one, two, three = (np.array([row], np.uint8) for row in ([0, 255, 255, 90], [255, 255, 0, 40], [0, 0, 0, 250]))
    assert masks.combine([one, two, three], "union").tolist() == [[255, 255, 255, 250]]
    assert masks.combine([one, two, three], "intersection").tolist() == [[0, 0, 0, 40]]
    assert masks.combine([one, two, three], "difference").tolist() == [[0, 0, 255, 5]]
    assert masks.combine([one], "difference").tolist() == one.tolist()
    assert one.tolist() == [[0, 255, 255, 90]]
    with pytest.raises(BadMask, match="mask 1 is 4 × 1") as caught:
        masks.combine([np.zeros((2, 2), np.uint8), one], "union")
    assert caught.value.violations[0].field == "masks[1]"
    with pytest.raises(BadMask, match="at least one"):
        masks.combine([], "union")


@given(any_mask())
def test_bounds_are_the_smallest_box(mask: np.ndarray) -> None:
    box = masks.bounds(mask)
    rows, columns = np.nonzero(mask)
    if len(rows) == 0:
        assert box is None
    else:
        left, top = int(columns.min()), int(rows.min())
        assert box == Box(left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)


@given(any_mask(), st.integers(0, 15))
@settings(deadline=None)
def test_neighbourhoods_cover_the_mask_with_margin_stay_inside_and_do_not_overlap(
    mask: np.ndarray, margin: int
) -> None:
    height, width = mask.shape
    boxes = masks.neighbourhoods(mask, margin)
    count = np.zeros(mask.shape, int)
    for box in boxes:
        assert min(box.x, box.y) >= 0
        assert box.right <= width
        assert box.bottom <= height
        count[box.slices()] += 1
    assert count.max() <= 1
    near = cv2.dilate(mask, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
    assert (count[near > 0] == 1).all()
    assert boxes == sorted(boxes, key=lambda box: (box.y, box.x))
    assert not any(mask[box.slices()].max() == 0 for box in boxes)


def test_holes_far_apart_stay_apart_and_near_ones_share_a_box() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[10, 10] = mask[12, 14] = mask[80, 80] = 255
    assert masks.neighbourhoods(mask, 3) == [Box(7, 7, 11, 9), Box(77, 77, 7, 7)]


def test_the_margin_may_depend_on_the_hole() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[10:20, 10:20] = 255
    mask[80, 80] = 255
    boxes = masks.neighbourhoods(mask, lambda hole: hole.width)
    assert boxes == [Box(0, 0, 30, 30), Box(79, 79, 3, 3)]


def test_hundreds_of_dots_are_merged_quickly() -> None:
    random = np.random.default_rng(0)
    mask = np.zeros((1500, 2000), np.uint8)
    for y, x in zip(random.integers(0, 1495, 660), random.integers(0, 1995, 660), strict=True):
        mask[y : y + 5, x : x + 5] = 255
    start = time.thread_time()
    boxes = masks.neighbourhoods(mask, 8)
    assert time.thread_time() - start < 1.0
    assert 1 < len(boxes) < 660
    assert not any(one.overlaps(two) for index, one in enumerate(boxes) for two in boxes[:index])


def test_noise_takes_bounded_time() -> None:
    mask = np.zeros((1200, 1200), np.uint8)
    mask[::3, ::3] = 255  # 160 000 holes
    boxes = masks.neighbourhoods(mask, 0)
    assert len(boxes) <= 4096
    assert sum(int((mask[box.slices()] > 0).sum()) for box in boxes) == 400 * 400


@pytest.mark.parametrize(
    ("pixel", "value"),
    [
        ([255, 255, 255], 255),
        ([0, 0, 0], 0),
        ([255, 0, 0], 76),
        ([0, 0, 1], 1),
        ([200], 200),
        ([200, 0], 200),
        ([255, 255, 255, 0], 255),
    ],
)
def test_masks_are_luminance_without_alpha(pixel: list[int], value: int) -> None:
    picture = Picture(np.array([[pixel]], np.uint8))
    assert masks.mask_from_picture(picture).tolist() == [[value]]


def test_sixteen_bit_masks_round_down_but_keep_what_is_covered() -> None:
    picture = Picture(np.array([[[0], [1], [255], [256], [65279], [65535]]], np.uint16))
    assert masks.mask_from_picture(picture).tolist() == [[0, 1, 1, 1, 254, 255]]


def test_masks_of_another_size_or_empty_are_refused() -> None:
    with pytest.raises(BadMask, match="3 × 2, the picture 2 × 3") as caught:
        masks.check_mask(np.ones((2, 3), np.uint8), Size(2, 3), field="hole")
    assert caught.value.violations[0].field == "hole"
    with pytest.raises(BadMask, match="all black"):
        masks.check_mask(np.zeros((2, 3), np.uint8), Size(3, 2))
    masks.check_mask(np.ones((2, 3), np.uint8), Size(3, 2))
