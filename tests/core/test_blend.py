import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.core.blend import blend, paste
from limner.core.geometry import Box
from limner.core.picture import Picture

sides = st.integers(1, 40)
depths = st.sampled_from([np.uint8, np.uint16])
seeds = st.integers(0, 2**32 - 1)


def noise(seed: int, *shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def soft_mask(seed: int, height: int, width: int) -> np.ndarray:
    """A third kept, a third replaced, a third in between."""
    return np.clip(noise(seed, height, width).astype(int) * 3 - 255, 0, 255).astype(np.uint8)


@given(seeds, sides, sides, st.integers(1, 4), depths, st.booleans())
@settings(deadline=None)
def test_unmasked_pixels_are_bit_identical(
    seed: int, width: int, height: int, channels: int, dtype: type, in_floats: bool
) -> None:
    original = Picture(noise(seed, height, width, channels, dtype=dtype))
    fill = noise(seed + 1, height, width, 1 if channels < 3 else 3, dtype=dtype)
    mask = soft_mask(seed, height, width)
    before = original.pixels.copy()
    result = blend(original, fill.astype(np.float64) - 0.3 if in_floats else fill, mask)
    assert result.pixels.dtype == dtype
    assert np.array_equal(result.pixels[mask == 0], original.pixels[mask == 0])
    assert np.array_equal(original.pixels, before)
    if original.has_alpha:
        assert np.array_equal(result.alpha(), original.alpha())


@given(seeds, sides, sides, st.sampled_from([1, 3]), depths)
@settings(deadline=None)
def test_blending_is_the_rounded_weighted_mean(seed: int, width: int, height: int, channels: int, dtype: type) -> None:
    original = Picture(noise(seed, height, width, channels, dtype=dtype))
    fill = noise(seed + 1, height, width, channels, dtype=dtype)
    mask = soft_mask(seed, height, width)
    weight = mask[:, :, None] / 255
    wanted = original.pixels * (1 - weight) + fill * weight
    result = blend(original, fill, mask).pixels
    assert np.abs(result - wanted).max() <= 0.51
    assert np.array_equal(result[mask == 255], fill[mask == 255])


@given(depths, st.sampled_from([-1e6, -0.6, 1e6, 70000.0]))
def test_overshoot_is_clipped_and_does_not_wrap(dtype: type, value: float) -> None:
    top = np.iinfo(dtype).max
    original = Picture(np.full((4, 4, 3), 100, dtype))
    result = blend(original, np.full((4, 4, 3), value, np.float32), np.full((4, 4), 255, np.uint8))
    assert (result.pixels == (0 if value < 0 else top)).all()


def test_a_mask_of_nothing_changes_nothing() -> None:
    original = Picture(noise(1, 5, 7, 4), icc_profile=b"icc")
    result = blend(original, np.zeros((5, 7, 3), np.uint8), np.zeros((5, 7), np.uint8))
    assert np.array_equal(result.pixels, original.pixels)
    assert result.icc_profile == b"icc"


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_what_a_fill_holds_outside_the_hole_does_not_matter(garbage: float) -> None:
    original = Picture(noise(1, 5, 7, 3))
    mask = np.zeros((5, 7), np.uint8)
    mask[2, 3] = 128
    fill = np.full((5, 7, 3), garbage, np.float32)
    fill[2, 3] = 100
    result = blend(original, fill, mask)
    assert np.array_equal(result.pixels[mask == 0], original.pixels[mask == 0])
    assert np.abs(result.pixels[2, 3] - (original.pixels[2, 3] + 100) / 2).max() < 1


def test_large_masks_are_blended_whole() -> None:
    original = Picture(np.zeros((1500, 700, 1), np.uint8))
    result = blend(original, np.full((1500, 700, 1), 200, np.uint8), np.full((1500, 700), 255, np.uint8))
    assert (result.pixels == 200).all()


@given(seeds, sides, sides, st.integers(1, 4), depths, st.data())
@settings(deadline=None)
def test_pasting_changes_the_box_alone(
    seed: int, width: int, height: int, channels: int, dtype: type, data: st.DataObject
) -> None:
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = Box(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    original = Picture(noise(seed, height, width, channels, dtype=dtype))
    patch = noise(seed + 1, box.height, box.width, 1 if channels < 3 else 3, dtype=dtype)
    result = paste(original, box, patch)
    outside = np.ones((height, width), bool)
    outside[box.slices()] = False
    assert np.array_equal(result.pixels[outside], original.pixels[outside])
    assert np.array_equal(result.colour()[box.slices()], patch)
    if original.has_alpha:
        assert np.array_equal(result.alpha(), original.alpha())


def test_what_does_not_fit_is_refused() -> None:
    original = Picture(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="fill"):
        blend(original, np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="patch"):
        paste(original, Box(2, 2, 3, 3), np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(ValueError, match="patch"):
        paste(original, Box(0, 0, 3, 3), np.zeros((3, 3, 3), np.uint16))
