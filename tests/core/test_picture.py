import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.core.picture import Picture, eight_bits, sixteen_bits


def test_sixteen_bits_become_eight_by_rounding() -> None:
    values = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(eight_bits(values), np.rint(values / 257))


def test_eight_bits_survive_sixteen() -> None:
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(eight_bits(sixteen_bits(values)), values)
    assert sixteen_bits(values)[-1] == 65535


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.sampled_from([np.uint8, np.uint16]))
@settings(deadline=None)
def test_what_models_see_is_three_channels_of_eight_bits(width: int, height: int, channels: int, dtype: type) -> None:
    picture = Picture(np.full((height, width, channels), np.iinfo(dtype).max, dtype))
    assert picture.rgb8().shape == (height, width, 3)
    assert picture.rgb8().dtype == np.uint8
    assert (picture.rgb8() == 255).all()
    assert picture.rgb8().flags.c_contiguous
    assert (picture.alpha() is not None) == (channels in (2, 4)) == picture.has_alpha
    assert picture.colour().shape[2] == (1 if channels < 3 else 3)


def test_new_pixels_keep_the_metadata() -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(2, 2, 4)
    picture = Picture(pixels, icc_profile=b"icc", exif=b"exif", source_format="webp")
    changed = picture.with_pixels(np.zeros((2, 2, 3), np.uint8))
    assert not changed.pixels.any()
    assert (changed.icc_profile, changed.exif, changed.source_format) == (b"icc", b"exif", "webp")


def test_a_profile_of_grey_is_not_put_on_rgb() -> None:
    grey = Picture(np.zeros((2, 2, 1), np.uint8), icc_profile=b"grey")
    assert grey.with_pixels(np.zeros((2, 2, 3), np.uint8)).icc_profile is None
    assert grey.with_pixels(np.ones((2, 2, 1), np.uint8)).icc_profile == b"grey"


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 5), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
        np.zeros((2, 2, 3), np.float32),
    ],
)
def test_arrays_that_are_no_pixels_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="is wanted"):
        Picture(pixels)


def test_strided_and_big_endian_pixels_are_made_plain() -> None:
    pixels = np.arange(24, dtype=">u2").reshape(2, 4, 3)[:, ::-1]
    picture = Picture(pixels)
    assert picture.pixels.flags.c_contiguous
    assert picture.pixels.dtype.isnative
    assert np.array_equal(picture.pixels, pixels)
