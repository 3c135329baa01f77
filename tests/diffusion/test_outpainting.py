"""Larger canvases, and what is laid under their new area."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from limner.core.errors import BadArgument
from limner.core.mask import feather
from limner.core.picture import Picture
from limner.diffusion.editing import Asked
from limner.diffusion.models import MODELS
from limner.diffusion.outpainting import Sides, extend, seam
from limner.diffusion.sizes import is_legal

MEDIUM = MODELS["sd3.5-medium"].VARIANT
ASSETS = Path(__file__).parents[2] / "assets"
ALL = Sides(200, 150, 300, 250)


def nuthatch() -> Picture:
    return Picture(cv2.imread(str(ASSETS / "nuthatch.jpg"), cv2.IMREAD_COLOR_RGB))


@pytest.mark.parametrize("feathered", [0, 1, 16, 40, 300])
@pytest.mark.parametrize("sides", [ALL, Sides(left=7), Sides(bottom=3, right=1)])
def test_the_seam_is_as_a_feathered_mask_has_it(sides, feathered):
    picture = Picture(np.zeros((60, 80, 3), np.uint8))
    new = seam(picture.size, sides, 0)
    assert set(np.unique(new)) == {0, 255}
    assert (new == 0).sum() == 60 * 80
    difference = seam(picture.size, sides, feathered).astype(int) - feather(new, feathered)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("sides", [ALL, Sides(left=100), Sides(top=90, right=40), Sides(bottom=300)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_pictures_own_pixels_are_kept_beyond_the_seam(sides, dtype, channels):
    random = np.random.default_rng(0)
    picture = Picture(random.integers(0, np.iinfo(dtype).max, (300, 400, channels), dtype, endpoint=True))
    for feathered in (0, 16):
        change = extend(picture, sides, MEDIUM, feathered=feathered, asked=Asked())
        assert is_legal(change.frame.size, MEDIUM)
        result = change.result(np.full_like(change.image, 255))
        assert (result.width, result.height) == (400 + sides.left + sides.right, 300 + sides.top + sides.bottom)
        own = result.pixels[sides.top : sides.top + 300, sides.left : sides.left + 400]
        kept = np.s_[
            feathered if sides.top else 0 : 300 - feathered if sides.bottom else 300,
            feathered if sides.left else 0 : 400 - feathered if sides.right else 400,
        ]
        assert (own[kept] == picture.pixels[kept]).all()
        outside = seam(picture.size, sides, 0) > 0
        assert (result.pixels[outside] == picture.maximum).all()  # what was made, and opaque
        if channels in (2, 4):
            assert (own[:, :, -1] == picture.pixels[:, :, -1]).all()


def test_the_new_area_continues_the_picture_without_a_step_and_grows_smooth():
    picture = nuthatch()
    change = extend(picture, ALL, MEDIUM, feathered=16, asked=Asked())
    assert change.frame.seen == change.picture.size  # at full size
    image = change.image.astype(float)
    left, right = ALL.left, ALL.left + picture.width
    inside = np.s_[ALL.top : ALL.top + picture.height]
    for column in (left - 1, right - 1):  # the step at the seam is no larger than steps in the picture
        step = np.abs(image[inside, column + 1] - image[inside, column]).mean()
        usual = np.abs(np.diff(image[inside, left:right], axis=1)).mean(axis=(0, 2))
        assert step <= np.quantile(usual, 0.99)
    near, far = (np.abs(np.diff(image[inside, at : at + 20], axis=0)).mean() for at in (left - 22, 0))
    own = np.abs(np.diff(image[inside, left : left + 20], axis=0)).mean()
    assert far < near < own
    assert far < 0.1 * own
    colours = image[inside, :40].mean(axis=(0, 1)), image[inside, left : left + 200].mean(axis=(0, 1))
    assert np.abs(colours[0] - colours[1]).max() < 25


def test_of_a_large_picture_the_model_sees_what_is_beside_the_new_area():
    picture = Picture(np.tile(np.arange(4000, dtype=np.uint16)[None, :, None], (1000, 1, 3)) // 16 * 257)
    change = extend(picture, Sides(right=300), MEDIUM, feathered=0, asked=Asked())
    assert change.frame.box.right == 4300
    assert 300 + 300 <= change.frame.box.width < 1100
    assert change.frame.box.height == 1000
    assert change.frame.seen == change.frame.box.size  # not reduced
    both = extend(picture, Sides(left=10, right=300), MEDIUM, feathered=0, asked=Asked())
    assert both.frame.box.width == 4310
    tall = Picture(np.zeros((3000, 1000, 1), np.uint8))  # as much beside it as is added, though that makes it larger
    assert extend(tall, Sides(right=400), MEDIUM, feathered=0, asked=Asked()).frame.box.width == 800
    assert extend(tall, Sides(right=10), MEDIUM, feathered=0, asked=Asked()).frame.box.width >= 266


def test_a_small_picture_has_no_dark_edge_where_it_is_enlarged_for_the_model():
    picture = Picture(np.full((40, 50, 3), 200, np.uint8))
    change = extend(picture, Sides(30, 30, 30, 30), MEDIUM, feathered=4, asked=Asked())
    assert change.frame.size.pixels >= MEDIUM.min_pixels
    assert (change.image == 200).all()


def test_a_picture_of_one_pixel_is_extended():
    change = extend(Picture(np.full((1, 1, 4), 7, np.uint8)), Sides(right=31), MEDIUM, feathered=512, asked=Asked())
    assert change.result(change.image).pixels.shape == (1, 32, 4)


def test_nothing_to_add_is_refused():
    with pytest.raises(BadArgument, match="left_px"):
        extend(nuthatch(), Sides(), MEDIUM, feathered=16, asked=Asked())
