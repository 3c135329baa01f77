"""What of a picture a model sees, and what becomes of the rest: nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from limner.core.errors import BadArgument, BadMask
from limner.core.geometry import Box, Size
from limner.core.picture import Picture
from limner.diffusion.editing import Asked, Change, change
from limner.diffusion.models import MODELS
from limner.diffusion.sizes import fault, fitted, is_legal, longest_side, nearest

MEDIUM = MODELS["sd3.5-medium"].VARIANT
LARGE = MODELS["sd3.5-large"].VARIANT
SD15 = MODELS["sd1.5-inpaint"].VARIANT
TINY = replace(MEDIUM, name="tiny", width=64, height=64, min_pixels=32 * 32, max_pixels=256 * 256, max_side=256)


def photograph(width: int, height: int, channels: int = 3, dtype: type = np.uint8) -> Picture:
    y, x = np.mgrid[:height, :width]
    planes = [120 + 80 * np.sin(x / 7), 120 + 80 * np.cos(y / 5), x * 255 / width, 255 - y * 200 / height]
    pixels = np.stack(planes[-channels:] if channels in (2, 4) else planes[:channels], axis=2)
    return Picture((pixels * (257 if dtype is np.uint16 else 1)).astype(dtype))


def mask_of(picture: Picture, box: Box, value: int = 255) -> np.ndarray:
    mask = np.zeros((picture.height, picture.width), np.uint8)
    mask[box.slices()] = value
    return mask


@pytest.mark.parametrize("variant", [MEDIUM, LARGE, SD15, TINY], ids=lambda variant: variant.name)
def test_the_nearest_size_is_legal_and_of_the_same_shape(variant):
    for width, height in ((1, 1), (1000, 1000), (4000, 3000), (700, 1900), (100_000, 3), (variant.width, 17)):
        found = nearest(Size(width, height), variant)
        assert is_legal(found, variant)
        if 1 / 3 < width / height < 3:
            assert abs(np.log(found.width / found.height * height / width)) < 0.3
    assert nearest(Size(variant.width, variant.height), variant) == Size(variant.width, variant.height)


def test_a_size_that_is_not_taken_is_told_with_the_nearest_one():
    assert fault(Size(1024, 1024), LARGE) is None
    assert nearest(Size(1000, 1000), LARGE) in (Size(992, 992), Size(1008, 1008))
    assert "1920 × 1080 is no size for sd3.5-large" in str(fault(Size(1920, 1080), LARGE))
    assert "0.26 to 1 megapixels" in str(fault(Size(1920, 1080), LARGE))
    assert str(fault(Size(2048, 2048), LARGE)).endswith("the nearest is 1024 × 1024")
    assert not is_legal(Size(longest_side(LARGE) + 16, 96), LARGE)


@pytest.mark.parametrize("variant", [MEDIUM, LARGE, SD15, TINY], ids=lambda variant: variant.name)
def test_every_picture_is_seen_at_a_legal_size_without_being_distorted(variant):
    for width, height in ((1, 1), (30, 5), (513, 700), (1024, 1024), (6000, 4000), (9000, 10), (3, 20_000)):
        seen, legal = fitted(Size(width, height), variant)
        assert is_legal(legal, variant), (width, height, legal)
        assert seen.width <= legal.width
        assert seen.height <= legal.height
        factor = seen.width / width if width > height else seen.height / height
        assert abs(seen.width - width * factor) <= 1
        assert abs(seen.height - height * factor) <= 1
    assert fitted(Size(variant.width - 3, variant.height - 5), variant)[0] == Size(
        variant.width - 3, variant.height - 5
    )


def test_a_masked_area_is_seen_at_full_size_with_what_is_around_it():
    picture = photograph(3000, 2000)
    made = change(picture, mask_of(picture, Box(1000, 900, 300, 100)), MEDIUM, asked=Asked())
    assert made.frame.seen == made.frame.size == made.frame.box.size
    assert is_legal(made.frame.size, MEDIUM)
    assert made.frame.box.x <= 1000 - 150
    assert made.frame.box.right >= 1300 + 150
    assert made.frame.box.area <= 1.1 * (600 * 512)  # no more than the model's least
    assert (made.image == picture.pixels[made.frame.box.slices()]).all()
    wide = change(picture, mask_of(picture, Box(1000, 900, 300, 100)), MEDIUM, margin=400, asked=Asked())
    assert wide.frame.box.width >= 1100
    assert wide.frame.box.height >= 900


def test_the_model_makes_whole_latents_anew_wherever_the_mask_is_not_0():
    picture = photograph(64, 64)
    mask = mask_of(picture, Box(10, 20, 1, 1), value=1)
    hole = change(picture, mask, TINY, asked=Asked(64, 64)).hole
    assert hole is not None
    assert hole.shape == (64, 64)
    assert hole.sum() == 64
    assert hole[16:24, 8:16].all()


def test_an_area_larger_than_the_model_takes_is_reduced():
    picture = photograph(2000, 1500)
    made = change(picture, mask_of(picture, Box(100, 100, 1700, 1200)), LARGE, asked=Asked())
    assert made.frame.box == Box(0, 0, 2000, 1500)
    assert made.frame.size.pixels <= LARGE.max_pixels
    assert made.image.shape == (made.frame.size.height, made.frame.size.width, 3)
    assert made.hole is not None
    assert made.hole.shape == made.image.shape[:2]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(97, 61), (300, 500), (20, 11)])
def test_what_the_mask_leaves_at_0_keeps_its_bits(size, channels, dtype):
    picture = photograph(*size, channels, dtype)
    mask = mask_of(picture, Box(5, 4, 9, 6))
    mask[10] = np.minimum(mask[10], 100)
    made = change(picture, mask, TINY, asked=Asked())
    result = made.result(255 - made.image)
    assert result.pixels.dtype == dtype
    assert result.pixels.shape == picture.pixels.shape
    assert (result.pixels[mask == 0] == picture.pixels[mask == 0]).all()
    if channels in (2, 4):
        assert (result.pixels[:, :, -1] == picture.pixels[:, :, -1]).all()
    middle = result.pixels[6, 9, 0] / picture.maximum + picture.pixels[6, 9, 0] / picture.maximum
    if channels > 2:
        assert abs(middle - 1) < 0.06, "the negative should be where the mask is"


def test_without_a_mask_the_whole_picture_comes_back_in_its_own_size_depth_and_alpha():
    for picture in (photograph(333, 200, 4, np.uint16), photograph(50, 40, 1), photograph(1000, 40)):
        made = change(picture, None, TINY, asked=Asked())
        assert made.hole is None
        assert is_legal(made.frame.size, TINY)
        result = made.result(made.image)
        assert result.pixels.shape == picture.pixels.shape
        assert result.bit_depth == picture.bit_depth
        colours = picture.channels - picture.has_alpha
        differences = np.abs(result.pixels[:, :, :colours] / picture.maximum - picture.colour() / picture.maximum)
        assert differences.mean() < 0.05
        if picture.has_alpha:
            assert (result.pixels[:, :, -1] == picture.pixels[:, :, -1]).all()


def test_a_size_that_is_asked_for_is_the_one_that_the_model_works_at():
    picture = photograph(3000, 2000)
    mask = mask_of(picture, Box(2900, 900, 100, 100))
    made = change(picture, mask, LARGE, asked=Asked(1024, 512))
    assert made.frame.size == Size(1024, 512)
    assert made.frame.box.width / made.frame.box.height == pytest.approx(2, rel=0.02)
    assert made.frame.box.right == 3000
    assert change(picture, None, LARGE, asked=Asked(width=768)).frame.size == Size(768, 512)
    assert change(picture, None, LARGE, asked=Asked(768, 768)).frame.seen == Size(768, 512)
    with pytest.raises(BadArgument, match=r"1000 × 1000 is no size for sd3\.5-large.*nearest") as caught:
        change(picture, mask, LARGE, asked=Asked(1000, 1000))
    assert [violation.field for violation in caught.value.violations] == ["options.generate.width_px"]


def test_a_mask_that_covers_nothing_or_is_of_another_size_is_refused():
    picture = photograph(64, 48)
    for mask in (np.zeros((48, 64), np.uint8), np.ones((64, 48), np.uint8)):
        with pytest.raises(BadMask):
            change(picture, mask, TINY, asked=Asked())


def test_a_preview_is_shown_without_what_only_fills_up_the_size():
    made: Change = change(photograph(100, 40), None, replace(TINY, min_pixels=128 * 128), asked=Asked(128, 128))
    assert made.frame.seen == Size(128, 51)
    assert made.frame.shown(np.zeros((16, 16, 3), np.uint8)).shape == (6, 16, 3)
