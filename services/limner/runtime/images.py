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


def picture_to_proto(picture: Picture, output: images_pb2.OutputOptions, *, field: str = "output") -> images_pb2.Image:
    """Return a picture for the wire, raw or encoded as `output` asks. Raises BadArgument for what can't be asked."""
    quality = output.quality if output.HasField("quality") else None
    bit_depth = output.bit_depth if output.HasField("bit_depth") else None
    if output.format != "raw":
        encoding = Encoding(output.format if output.HasField("format") else None, quality, bit_depth)
        return images_pb2.Image(encoded=encode(picture, encoding, field=field))
    if bit_depth not in (None, 8, 16):
        raise BadArgument(f"bit depth is {bit_depth}; give 8 or 16", field=f"{field}.bit_depth")
    image = images_pb2.Image()
    # CopyFrom copies; a constructor serialises and parses, which takes ten times as long for megabytes.
    image.raw.CopyFrom(_to_raw(picture if bit_depth is None else picture.with_bit_depth(bit_depth)))
    return image


def mask_to_proto(
    mask: NDArray[np.uint8], output: images_pb2.OutputOptions, *, field: str = "output"
) -> images_pb2.Image:
    """Return a mask, (height, width) uint8, for the wire; PNG unless `output` asks for another format."""
    return picture_to_proto(Picture(np.ascontiguousarray(mask)[:, :, None]), output, field=field)


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


def _to_raw(picture: Picture) -> images_pb2.RawImage:
    return images_pb2.RawImage(
        width_px=picture.width,
        height_px=picture.height,
        channel_count=picture.channels,
        bit_depth=picture.bit_depth,
        data=np.ascontiguousarray(picture.pixels, _DTYPES[picture.bit_depth]).tobytes(),
        icc_profile=picture.icc_profile or b"",
        exif=picture.exif or b"",
        source_format=picture.source_format,
    )
