"""Pictures and masks from and to the protos. The only module of the runtime that knows pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.core.codec import Encoding, Limits, decode, encode
from limner.core.errors import BadArgument, BadImage, ImageTooLarge
from limner.core.mask import mask_from_picture
from limner.core.picture import Picture
from limner.v1 import images_pb2

_DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype("u1"), 16: np.dtype("<u2")}


def picture_from_proto(image: images_pb2.Image, limits: Limits, *, field: str = "image") -> Picture:
    """Return the picture in a request: (height, width, channels), uint8 or uint16.

    Raw 8-bit pixels are not copied: they are read-only. Raises BadArgument for a blob id or nothing at all, BadImage
    for what is no image or has not the size it says, ImageTooLarge for more than `limits`; each names `field`.
    """
    source = image.WhichOneof("source")
    if source == "encoded":
        return decode(image.encoded, limits, field=field)
    if source == "raw":
        return _from_raw(image.raw, limits, field)
    if source == "blob_id":
        raise BadArgument(
            f"{field}: model servers keep no blobs; send the pixels, or send the request to a router", field=field
        )
    raise BadArgument(f"{field} is missing; give `encoded` or `raw`", field=field)


def mask_from_proto(image: images_pb2.Image, limits: Limits, *, field: str = "mask") -> NDArray[np.uint8]:
    """Return the mask in a request: (height, width) uint8, 0 keeps .. 255 replaces. Raises as picture_from_proto."""
    return mask_from_picture(picture_from_proto(image, limits, field=field))


def put_picture(
    image: images_pb2.Image, picture: Picture, output: images_pb2.OutputOptions, *, field: str = "output"
) -> None:
    """Write a picture into `image`, raw or encoded as `output` asks. Raises BadArgument for what can't be asked.

    It is written into the message it belongs to, since passing megabytes to a message's constructor serialises and
    parses them: put_picture(result.image, picture, request.output).
    """
    quality = output.quality if output.HasField("quality") else None
    bit_depth = output.bit_depth if output.HasField("bit_depth") else None
    if output.format == "raw":
        if bit_depth not in (None, 8, 16):
            raise BadArgument(f"bit depth is {bit_depth}; give 8 or 16", field=f"{field}.bit_depth")
        _put_raw(image.raw, picture if bit_depth is None else picture.with_bit_depth(bit_depth))
    else:
        encoding = Encoding(output.format if output.HasField("format") else None, quality, bit_depth)
        image.encoded = encode(picture, encoding, field=field)


def put_mask(
    image: images_pb2.Image, mask: NDArray[np.uint8], output: images_pb2.OutputOptions, *, field: str = "output"
) -> None:
    """Write a mask, (height, width) uint8, into `image`; as PNG unless `output` asks for another format."""
    put_picture(image, Picture(np.ascontiguousarray(mask)[:, :, None]), output, field=field)


def check_output(output: images_pb2.OutputOptions, *, channels: int = 1, field: str = "output") -> None:
    """Raise BadArgument for what no 8-bit picture of so many channels can be encoded as, by trying it with one black
    pixel: before any work is done for nothing."""
    put_picture(images_pb2.Image(), Picture(np.zeros((1, 1, channels), np.uint8)), output, field=field)


def _from_raw(raw: images_pb2.RawImage, limits: Limits, field: str) -> Picture:
    width, height, channels, bits = raw.width_px, raw.height_px, raw.channel_count, raw.bit_depth
    for name, value, accepted in (("channel_count", channels, (1, 2, 3, 4)), ("bit_depth", bits, (8, 16))):
        if value not in accepted:
            raise BadArgument(
                f"{field}.raw.{name} is {value}; give {', '.join(map(str, accepted[:-1]))} or {accepted[-1]}",
                field=f"{field}.raw.{name}",
            )
    if not width or not height:
        raise BadImage(f"{field}: a picture of {width}×{height} pixels; each side needs at least 1", field=field)
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"{field}: {width}×{height} pixels, and at most {limits.max_pixels} are taken: make it smaller",
            field=field,
            metadata={"limit": str(limits.max_pixels), "actual": str(width * height)},
        )
    expected = width * height * channels * bits // 8
    if len(raw.data) != expected:
        raise BadImage(
            f"{field}: {len(raw.data)} bytes of pixels, but {width}×{height} with {channels} channels of {bits} bits "
            f"are {expected}",
            field=f"{field}.raw.data",
        )
    pixels = np.frombuffer(raw.data, _DTYPES[bits]).reshape(height, width, channels)
    return Picture(
        pixels.astype(pixels.dtype.newbyteorder("="), copy=False),
        icc_profile=raw.icc_profile or None,
        exif=raw.exif or None,
        source_format=raw.source_format or "png",
    )


def _put_raw(raw: images_pb2.RawImage, picture: Picture) -> None:
    raw.width_px = picture.width
    raw.height_px = picture.height
    raw.channel_count = picture.channels
    raw.bit_depth = picture.bit_depth
    raw.data = np.ascontiguousarray(picture.pixels, _DTYPES[picture.bit_depth]).tobytes()
    raw.icc_profile = picture.icc_profile or b""
    raw.exif = picture.exif or b""
    raw.source_format = picture.source_format
