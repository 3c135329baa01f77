"""Pictures and masks over the wire."""

from __future__ import annotations

import numpy as np
import pytest

from limner.core.codec import Encoding, Limits, encode
from limner.core.errors import BadArgument, BadImage, ImageTooLarge, InvalidInput
from limner.core.picture import Picture
from limner.runtime.images import check_output, mask_from_proto, picture_from_proto, put_mask, put_picture
from limner.v1.images_pb2 import Image, OutputOptions, RawImage

LIMITS = Limits(max_pixels=100)
RAW = OutputOptions(format="raw")


def sent_as(sent, output):
    image = Image()
    put_picture(image, sent, output)
    return image


def mask_sent_as(mask, output):
    image = Image()
    put_mask(image, mask, output)
    return image


def picture(channels: int = 3, dtype: type = np.uint8, height: int = 5, width: int = 7) -> Picture:
    rng = np.random.default_rng(channels)
    return Picture(rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype), b"icc", None, "webp")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_raw_pixels_come_back_as_they_went(channels, dtype):
    sent = picture(channels, dtype)
    message = sent_as(sent, RAW)
    got = picture_from_proto(Image.FromString(message.SerializeToString()), LIMITS)
    np.testing.assert_array_equal(got.pixels, sent.pixels)
    assert got.pixels.dtype == dtype
    assert (got.icc_profile, got.exif, got.source_format) == (b"icc", None, "webp")


def test_sixteen_bits_travel_little_endian():
    sent = Picture(np.array([[[0x0102]]], np.uint16))
    assert sent_as(sent, RAW).raw.data == b"\x02\x01"


def test_raw_pixels_of_8_bits_are_not_copied():
    message = sent_as(picture(), RAW)
    got = picture_from_proto(message, LIMITS)
    assert not got.pixels.flags.owndata
    assert not got.pixels.flags.writeable


def test_encoded_files_are_read_and_written():
    sent = picture(4)
    message = sent_as(sent, OutputOptions(format="png"))
    np.testing.assert_array_equal(picture_from_proto(message, LIMITS).pixels, sent.pixels)
    assert message.encoded == encode(sent, Encoding("png"))


def test_raw_output_of_another_depth_is_given():
    assert sent_as(picture(), OutputOptions(format="raw", bit_depth=16)).raw.bit_depth == 16


def test_masks_are_png_unless_asked_otherwise():
    mask = np.arange(35, dtype=np.uint8).reshape(5, 7)
    assert mask_sent_as(mask, OutputOptions()).encoded.startswith(b"\x89PNG")
    np.testing.assert_array_equal(mask_from_proto(mask_sent_as(mask, OutputOptions()), LIMITS), mask)
    np.testing.assert_array_equal(mask_from_proto(mask_sent_as(mask, RAW), LIMITS), mask)


def raw(**changes: object) -> Image:
    fields = {"width_px": 2, "height_px": 3, "channel_count": 3, "bit_depth": 8, "data": bytes(18)}
    return Image(raw=RawImage(**(fields | changes)))


@pytest.mark.parametrize(
    ("image", "kind", "field", "words"),
    [
        (Image(), BadArgument, "photo", "missing"),
        (Image(blob_id="ab"), BadArgument, "photo", "router"),
        (Image(encoded=b""), BadImage, "photo", ""),
        (Image(encoded=b"no image at all"), BadImage, "photo", ""),
        (raw(channel_count=5), BadArgument, "photo.raw.channel_count", "1, 2, 3 or 4"),
        (raw(channel_count=0), BadArgument, "photo.raw.channel_count", "1, 2, 3 or 4"),
        (raw(bit_depth=12), BadArgument, "photo.raw.bit_depth", "8 or 16"),
        (raw(width_px=0, data=b""), BadImage, "photo", "0×3"),
        (raw(data=bytes(17)), BadImage, "photo.raw.data", "17 bytes"),
        (raw(data=bytes(19)), BadImage, "photo.raw.data", "are 18"),
        (raw(width_px=11, height_px=10, data=b""), ImageTooLarge, "photo", "100"),
        (raw(width_px=2**32 - 1, height_px=2**32 - 1, data=b""), ImageTooLarge, "photo", "100"),
    ],
)
def test_a_bad_image_names_its_field_and_the_mend(image, kind, field, words):
    with pytest.raises(InvalidInput) as raised:
        picture_from_proto(image, LIMITS, field="photo")
    assert type(raised.value) is kind
    assert raised.value.violations[0].field == field
    assert words in raised.value.message


@pytest.mark.parametrize(
    ("output", "field"),
    [
        (OutputOptions(format="raw", bit_depth=12), "output.bit_depth"),
        (OutputOptions(format="gif89"), "output.format"),
        (OutputOptions(format="jpeg", quality=101), "output.quality"),
        (OutputOptions(format=""), "output.format"),
    ],
)
def test_a_bad_output_names_its_field(output, field):
    for write in (lambda: sent_as(picture(), output), lambda: check_output(output, channels=3)):
        with pytest.raises(BadArgument) as raised:
            write()
        assert raised.value.violations[0].field == field
