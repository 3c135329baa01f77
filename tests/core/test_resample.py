import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.core.geometry import Box, Size
from limner.core.resample import Method, pad_reflect, resize

sides = st.integers(1, 40)
depths = st.sampled_from([np.uint8, np.uint16])
methods = st.sampled_from(["lanczos", "area", "cubic", "linear"])


@given(sides, sides, sides, sides, st.integers(1, 4), depths, methods, st.integers(0, 255))
@settings(deadline=None)
def test_one_colour_stays_that_colour_at_any_size(
    width: int, height: int, new_width: int, new_height: int, channels: int, dtype: type, method: Method, value: int
) -> None:
    pixels = np.full((height, width, channels), value, dtype)
    resized = resize(pixels, Size(new_width, new_height), method=method)
    assert resized.shape == (new_height, new_width, channels)
    assert resized.dtype == dtype
    assert resized.flags.c_contiguous
    assert (resized == value).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("method", ["lanczos", "cubic"])
def test_overshoot_is_clipped_and_does_not_wrap(dtype: type, method: Method) -> None:
    top = np.iinfo(dtype).max
    edge = np.zeros((16, 16, 3), dtype)
    edge[:, 8:] = top
    resized = resize(edge, Size(64, 64), method=method).astype(int)
    assert (resized[:, :24] < top // 8).all()
    assert (resized[:, 40:] > top - top // 8).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("method", ["lanczos", "area", "cubic", "linear"])
def test_colours_of_invisible_pixels_do_not_shine_through(dtype: type, method: Method) -> None:
    top = np.iinfo(dtype).max
    pixels = np.zeros((20, 20, 4), dtype)
    pixels[:, :, 1] = top  # invisible green
    pixels[5:15, 5:15] = (top, 0, 0, top)
    resized = resize(pixels, Size(13, 13), method=method)
    visible = resized[resized[:, :, 3] > 0]
    assert (visible[:, 0] >= top - 1).all()
    assert (visible[:, 1] == 0).all()


def test_sixteen_bits_keep_their_precision() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None, :, None].repeat(4, axis=0)
    resized = resize(ramp, Size(1024, 4), method="linear")
    assert len(np.unique(resized)) > 900


def test_area_is_the_mean_of_what_a_pixel_covers() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (12, 9, 3), np.uint16)
    means = pixels.reshape(4, 3, 3, 3, 3).mean(axis=(1, 3))
    assert np.abs(resize(pixels, Size(3, 4), method="area") - means).max() <= 0.51


@given(sides, sides, st.integers(0, 90), st.integers(0, 90))
def test_padding_mirrors_and_keeps_the_picture(width: int, height: int, right: int, bottom: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    padded = pad_reflect(pixels, Size(width + right, height + bottom))
    assert padded.shape == (height + bottom, width + right, 3)
    assert np.array_equal(padded[:height, :width], pixels)
    if right and width > 1:
        assert np.array_equal(padded[:height, width], pixels[:, width - 2])
    if bottom and height > 1:
        assert np.array_equal(padded[height, :width], pixels[height - 2])


def test_padding_works_on_masks_and_refuses_to_crop() -> None:
    assert pad_reflect(np.array([[1, 2, 3]]), Size(7, 2)).tolist() == [[1, 2, 3, 2, 1, 2, 3]] * 2
    with pytest.raises(ValueError, match="cannot be padded"):
        pad_reflect(np.zeros((4, 4)), Size(3, 4))


@given(st.data(), sides, sides, st.integers(1, 4), depths, methods)
@settings(deadline=None)
def test_a_part_is_that_part_of_the_whole(
    data: st.DataObject, width: int, height: int, channels: int, dtype: type, method: Method
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    pixels = random.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype, endpoint=True)
    size = Size(data.draw(sides), data.draw(sides))
    x, y = data.draw(st.integers(0, size.width - 1)), data.draw(st.integers(0, size.height - 1))
    part = Box(x, y, data.draw(st.integers(1, size.width - x)), data.draw(st.integers(1, size.height - y)))
    whole = resize(pixels, size, method=method)[part.slices()].astype(int)
    alone = resize(pixels, size, method=method, part=part)
    assert alone.dtype == dtype
    # Pillow's boxes are in single precision: the end of a kernel may fall on the other side of a pixel's middle, which
    # matters little but where a kernel ends steeply.
    assert method == "area" or np.abs(alone - whole).max() <= 0.02 * np.iinfo(dtype).max
