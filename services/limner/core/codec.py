"""Files to pictures and back. Knows no wire and no model; everything a file format does to pixels is settled here.

Pillow reads and writes most formats. It cuts 16-bit RGB to 8 bits and cannot write it, so 16-bit PNG goes through
imagecodecs (libpng), and TIFF but for its rarer kinds through tifffile. Of a JPEG that is cut off, if only it ends with
a marker, it shows what there is and grey below; simplejpeg, which is the same libjpeg-turbo, tells. All PNGs are
written by libpng with one filter and run lengths only, which was measured on photographs: a tenth of the time of
Pillow's defaults, files no larger.

What comes out of `decode` is upright (EXIF orientation is applied once and set to 1), sRGB unless it carries a
profile, and has 1 to 4 channels of 8 or 16 bits with straight alpha. Of several frames or pages it is the first.
"""

from __future__ import annotations

import io
import logging
import math
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError
from PIL.ExifTags import IFD, Base

from limner.core.errors import BadArgument, BadImage, ImageTooLarge
from limner.core.picture import Picture, Pixels, eight_bits

# Formats that Pillow may try. Left out: those that start programs (EPS), hold pictures of another size than their
# header says (ICO, ICNS), or are no pictures (PDF, MPEG, HDF5, ...).
_READABLE = (
    "PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "AVIF", "JPEG2000", "TGA", "PCX", "DDS", "QOI",
    "SGI", "PSD", "SUN", "XBM",
)  # fmt: skip

_ORIENTATION = 0x0112
_TIFF_DEFLATE_LEVEL = 1  # 6 takes more than twice the time for 3 % less
_LONGEST_JPEG_EXIF = 65533  # what a marker segment holds

_SRGB = ImageCms.createProfile("sRGB")
_LAB = ImageCms.createProfile("LAB")

# Of a PNG's profile or text, unpacked: Pillow's own limit of a megabyte is less than what profiles with tables take.
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20

Image.init()  # registers the formats, once and before threads come

# tifffile warns about every oddity of a file; what matters is raised.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Limits:
    """How large a picture may be. Pillow itself refuses more than 179 million pixels."""

    max_bytes: int = 256 << 20  # of the file
    max_pixels: int = 64_000_000  # width times height


def decode(data: bytes, limits: Limits = Limits(), *, field: str = "image") -> Picture:
    """Read a picture; the format is detected from the bytes.

    Raises BadImage for what is no image, cut off or damaged, and ImageTooLarge, both with a violation of `field`.
    Sizes are checked against the header, before pixels are decoded.
    """
    if not data:
        raise BadImage("the image is empty (0 bytes); send a whole image file", field=field)
    if len(data) > limits.max_bytes:
        raise _too_large(f"the image has {len(data)} bytes", limits.max_bytes, len(data), "bytes", field)
    try:
        return _decode(data, limits, field)
    except (BadImage, ImageTooLarge):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        actual = re.search(r"\d+", str(error))
        raise ImageTooLarge(
            f"the image unpacks to {actual[0] if actual else 'too many'} pixels; {limits.max_pixels} are accepted, "
            "so send a smaller one",
            field=field,
            metadata={"limit": str(limits.max_pixels), "actual": actual[0] if actual else "unknown"},
        ) from error
    except MemoryError as error:
        raise ImageTooLarge("the image needs more memory than there is; send a smaller one", field=field) from error
    except UnidentifiedImageError as error:
        raise BadImage(
            "the bytes are no image of a known format; send PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, AVIF or JPEG 2000",
            field=field,
        ) from error
    except Exception as error:  # decoders raise anything on damaged files: struct.error, IndexError, SyntaxError, ...
        what = str(error)[:200]
        raise BadImage(f"the image is cut off or damaged ({what}); send the whole file again", field=field) from error


def _too_large(what: str, limit: int, actual: int, unit: str, field: str) -> ImageTooLarge:
    """Return the error with both numbers."""
    return ImageTooLarge(
        f"{what}; {limit} {unit} are accepted, so send a smaller one",
        field=field,
        metadata={"limit": str(limit), "actual": str(actual)},
    )


def _decode(data: bytes, limits: Limits, field: str) -> Picture:
    """Read a picture; whatever the decoders raise passes through."""
    if data[:4] in _TIFF_BEGINNINGS and _is_plain_tiff(data, field):
        return _decode_plain_tiff(data, limits, field)
    with Image.open(io.BytesIO(data), formats=_READABLE) as image:
        _check_size(image.width, image.height, limits, field)
        if image.format == "PNG" and _is_16_bit_png(data):
            return _decode_16_bit_png(data, image)
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            whole = _whole_jpeg(data, image.mode, field)
            if whole is not None:
                upright = _upright(whole, _orientation(image))
                return Picture(upright, image.info.get("icc_profile") or None, _exif(image), "jpeg")
        image.load()
        _check_size(image.width, image.height, limits, field)
        # Pillow has turned TIFFs by itself when they are loaded.
        orientation = 1 if image.format == "TIFF" else _orientation(image)
        exif = _exif_of_tiff(data) if image.format == "TIFF" else _exif(image)
        pixels, icc_profile = _pixels(image, field)
        return Picture(_upright(pixels, orientation), icc_profile, exif, _format_name(image))


def _check_size(width: int, height: int, limits: Limits, field: str) -> None:
    """Refuse pictures without pixels and with too many."""
    if width < 1 or height < 1:
        raise BadImage(f"the image is {width} × {height}; send one of at least 1 × 1 pixels", field=field)
    if width * height > limits.max_pixels:
        raise _too_large(f"the image has {width} × {height} pixels", limits.max_pixels, width * height, "pixels", field)


def _format_name(image: Image.Image) -> str:
    """Return Limner's name of the file's format."""
    name = (image.format or "png").lower()
    return {"mpo": "jpeg", "dib": "bmp"}.get(name, name)


# ---- JPEG ---------------------------------------------------------------------------------------------------------


def _whole_jpeg(data: bytes, mode: str, field: str) -> Pixels | None:
    """Return (height, width, 1 or 3) uint8 of the first picture in a sound file; None if something is odd about it that
    takes no pixels away, such as bytes too many, or if this decoder can't read its kind. Raise BadImage if data ends
    before the picture does."""
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "GRAY" if mode == "L" else "RGB", strict=True)
    except ValueError as error:
        if "premature end" not in str(error).lower():
            return None
        raise BadImage("the image is cut off: pixels are missing; send the whole file again", field=field) from error
    return pixels


# ---- pixels of Pillow's modes -------------------------------------------------------------------------------------


def _pixels(image: Image.Image, field: str) -> tuple[Pixels, bytes | None]:
    """Return (height, width, 1 to 4) uint8 or uint16 and the profile they are in, of an image in any mode."""
    icc_profile = image.info.get("icc_profile") or None
    mode = image.mode
    if mode == "F":
        raise BadImage(
            "the image holds floating-point values, whose black and white are unknown; convert it to 8 or 16 bits",
            field=field,
        )
    if mode == "I":
        return _sixteen_bits_of_integers(np.asarray(image), field), icc_profile
    if mode.startswith("I;16"):
        return _native(np.asarray(image))[:, :, None], icc_profile
    if mode in ("CMYK", "LAB"):
        return np.array(_to_srgb(image, icc_profile)), None
    if mode in ("La", "PA", "RGBa"):
        image = image.convert({"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}[mode])
    elif image.has_transparency_data and mode not in ("LA", "RGBA"):
        image = image.convert("LA" if mode in ("1", "L") else "RGBA")
    elif mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "LA", "RGB", "RGBA"):  # P, RGBX, YCbCr, HSV
        image = image.convert("RGB")
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None], icc_profile


def _native(array: Pixels) -> Pixels:
    """Return a copy in the machine's byte order."""
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def _sixteen_bits_of_integers(values: Pixels, field: str) -> Pixels:
    """Return (height, width, 1) uint16 of 32-bit integers that are 16-bit grey, as in large PGMs."""
    if values.min() < 0 or values.max() > 65535:
        raise BadImage(
            f"the image holds 32-bit integers from {values.min()} to {values.max()}; convert it to 8 or 16 bits",
            field=field,
        )
    return values.astype(np.uint16)[:, :, None]


def _to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """Return RGB in sRGB of CMYK or Lab. CMYK without a usable profile is taken as plain inks."""
    if image.mode == "LAB":
        converted = ImageCms.profileToProfile(image, _LAB, _SRGB, outputMode="RGB")
    else:
        if icc_profile is None:
            return image.convert("RGB")
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            converted = ImageCms.profileToProfile(
                image, profile, _SRGB, renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )  # fmt: skip
        except (ImageCms.PyCMSError, OSError):
            return image.convert("RGB")
    assert converted is not None  # None is for conversions in place
    return converted


# ---- EXIF ---------------------------------------------------------------------------------------------------------


def _orientation(image: Image.Image) -> int:
    """Return the EXIF (or XMP) orientation, 1 to 8; 1 if there is none that makes sense."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF is no reason to refuse a sound picture
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return the pixels as they are meant to be seen."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _exif(image: Image.Image) -> bytes | None:
    """Return the EXIF block from its TIFF header on, with orientation 1, or None."""
    try:
        raw: bytes | bytearray = (
            image.info.get("exif") or image.getexif().tobytes()
        )  # the latter for what PNGs hold as text
        return _with_orientation_1(bytes(raw).removeprefix(b"Exif\0\0"))
    except Exception:  # as in _orientation
        return None


# Of a TIFF's own tags, those that say something about the picture rather than how its pixels are stored.
_DESCRIPTIVE_TEXT = (
    Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime, Base.Artist, Base.Copyright,
)  # fmt: skip


def _descriptive(found: Image.Exif) -> bytes | None:
    """Return a block of what says something about the picture; None if nothing does."""
    kept = Image.Exif()
    for tag in _DESCRIPTIVE_TEXT:
        if tag in found:
            kept[tag] = found[tag]
    for ifd in (IFD.Exif, IFD.GPSInfo):
        if tags := found.get_ifd(ifd):
            kept[ifd] = dict(tags)
    return kept.tobytes().removeprefix(b"Exif\0\0") if len(kept) else None


def _with_orientation_1(exif: bytes) -> bytes | None:
    """Return the block with the orientation of its main directory set to 1, all else untouched; None if damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    directory = struct.unpack_from(order + "I", exif, 4)[0]
    tags = list(_tiff_entries(exif, order, directory))
    if not tags:
        return None
    if _ORIENTATION not in tags:
        return exif
    upright = struct.pack(order + "HHIHH", _ORIENTATION, 3, 1, 1, 0)
    entry = directory + 2 + 12 * tags.index(_ORIENTATION)
    return exif[:entry] + upright + exif[entry + 12 :]


# ---- PNG ----------------------------------------------------------------------------------------------------------


def _is_16_bit_png(data: bytes) -> bool:
    """Say whether the header tells of 16 bits a channel."""
    return data[24] == 16


def _png_chunk_of(data: bytes, kind: bytes) -> bytes | None:
    """Return the content of the first chunk of a kind, or None."""
    position = 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == kind:
            return data[position + 8 : end]
        position = end + 4
    return None


def _decode_16_bit_png(data: bytes, image: Image.Image) -> Picture:
    """Read what Pillow would cut to 8 bits. `image` is Pillow's, opened but not loaded, for profile and EXIF."""
    pixels = imagecodecs.png_decode(data)
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    if exif := _png_chunk_of(data, b"eXIf"):  # may come after the pixels, where Pillow hasn't been
        image.info["exif"] = exif
    return Picture(_upright(pixels, _orientation(image)), image.info.get("icc_profile") or None, _exif(image), "png")


def _encode_png(picture: Picture) -> bytes:
    """Write 8 or 16 bits, 1 to 4 channels."""
    pixels = picture.pixels if picture.channels > 1 else picture.pixels[:, :, 0]
    data = bytes(
        imagecodecs.png_encode(
            pixels, level=1, filter=imagecodecs.PNG.FILTER.PAETH, strategy=imagecodecs.PNG.STRATEGY.RLE
        )
    )
    after_header = 8 + 12 + 13
    extra = b""
    if picture.icc_profile:
        extra += _png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc_profile))
    if picture.exif:
        extra += _png_chunk(b"eXIf", picture.exif)
    return data[:after_header] + extra + data[after_header:]


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a whole chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# ---- TIFF ---------------------------------------------------------------------------------------------------------

_TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


# How many channels are colours (or inks), by what a TIFF says of them.
_TIFF_COLOURS: dict[int, int] = {
    tifffile.PHOTOMETRIC.MINISWHITE: 1,
    tifffile.PHOTOMETRIC.MINISBLACK: 1,
    tifffile.PHOTOMETRIC.RGB: 3,
    tifffile.PHOTOMETRIC.SEPARATED: 4,
}


def _is_plain_tiff(data: bytes, field: str) -> bool:
    """Say whether the first page of a TIFF is for tifffile: 8 or 16 bits of grey, RGB or CMYK. Refuse floating point.

    The others (palettes, single bits, YCbCr, Lab) are for Pillow, which cuts 16 bits to 8 and misreads planar alpha.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            page = tiff.pages.first
            floating = page.sampleformat == tifffile.SAMPLEFORMAT.IEEEFP
            plain = page.bitspersample == 16 or (
                page.bitspersample == 8
                and page.photometric in _TIFF_COLOURS
                and page.compression != tifffile.COMPRESSION.OJPEG
            )
    except tifffile.TiffFileError:
        return False
    if floating:
        raise BadImage(
            "the image holds floating-point values, whose black and white are unknown; convert it to 8 or 16 bits",
            field=field,
        )
    return plain


def _decode_plain_tiff(data: bytes, limits: Limits, field: str) -> Picture:
    """Read 8 or 16 bits a channel: grey or RGB, with or without alpha, or CMYK, which becomes 8 bits; interleaved or
    planar."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        assert isinstance(page, tifffile.TiffPage)
        _check_size(page.imagewidth, page.imagelength, limits, field)
        _check_tiff_layout(page, data, limits, field)
        pixels = page.asarray(maxworkers=1)
        orientation = page.tags.valueof(_ORIENTATION, 1)
        icc_profile = page.iccprofile or None
        extra = [int(kind) for kind in page.extrasamples]
        photometric = page.photometric
    pixels = np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels.reshape(*pixels.shape[:2], -1)
    colours = _TIFF_COLOURS[photometric]
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = np.concatenate([~pixels[:, :, :1], pixels[:, :, 1:]], axis=2)
    if colours == 4:
        inks = Image.frombytes("CMYK", (page.imagewidth, page.imagelength), eight_bits(pixels[:, :, :4]).tobytes())
        pixels, icc_profile = np.array(_to_srgb(inks, icc_profile)), None
    elif pixels.shape[2] > colours and (not extra or extra[0] in (1, 2)):  # else the extra channel isn't alpha
        pixels = pixels[:, :, : colours + 1]
        pixels = _straight(pixels) if extra and extra[0] == 1 else pixels
    else:
        pixels = pixels[:, :, :colours]
    upright = _upright(pixels, orientation if orientation in range(1, 9) else 1)
    return Picture(upright, icc_profile, _exif_of_tiff(data), "tiff")


def _check_tiff_layout(page: tifffile.TiffPage, data: bytes, limits: Limits, field: str) -> None:
    """Refuse what tifffile would fill with zeros, what would take memory beyond the pixels, and unusual colours."""
    if (
        page.photometric not in _TIFF_COLOURS
        or page.dtype not in (np.uint8, np.uint16)
        or page.axes not in ("YX", "YXS", "SYX")
        or page.samplesperpixel > 5
    ):
        raise BadImage(
            f"the TIFF is of an unusual kind ({page.photometric!s}, {page.axes}, {page.dtype}); "
            "convert it to grey or RGB of 8 or 16 bits",
            field=field,
        )
    if page.is_tiled and page.tilewidth * page.tilelength > max(limits.max_pixels, 1 << 20):
        raise BadImage("the TIFF's tiles are larger than any picture accepted; write it anew", field=field)
    spans = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if len(spans) < math.prod(page.chunked) or any(
        count < 1 or offset < 8 or offset + count > len(data) for offset, count in spans
    ):
        raise BadImage("the image is cut off: pixels are missing; send the whole file again", field=field)


def _straight(pixels: Pixels) -> Pixels:
    """Return pixels whose colours aren't multiplied by alpha any more, of some that are; black where alpha is 0."""
    maximum = np.iinfo(pixels.dtype).max
    colour, alpha = pixels[:, :, :-1], pixels[:, :, -1:]
    straight = np.divide(colour * np.float64(maximum), alpha, out=np.zeros(colour.shape), where=alpha > 0)
    return np.concatenate([np.rint(np.minimum(straight, maximum)).astype(pixels.dtype), alpha], axis=2)


def _exif_of_tiff(data: bytes) -> bytes | None:
    """Return an EXIF block of the descriptive tags, and the EXIF and GPS directories, of a TIFF's first page."""
    try:
        tags = Image.Exif()
        tags.load(data)
        return _descriptive(tags)
    except Exception:  # as in _orientation
        return None


def _encode_tiff(picture: Picture, quality: int | None) -> bytes:
    """Write deflate with prediction, or JPEG where a quality is given and JPEG can hold the pixels."""
    lossy = quality is not None and picture.bit_depth == 8 and not picture.has_alpha
    pixels = picture.pixels if picture.channels > 1 else picture.pixels[:, :, 0]
    for exif in (picture.exif, None):
        # An EXIF block is a TIFF without pixels: they are added behind it, so that what the block points to, maker
        # notes included, stays where it is.
        buffer = io.BytesIO(exif or b"")
        try:
            with tifffile.TiffWriter(buffer, append=bool(exif)) as tiff:
                tiff.write(
                    pixels,
                    photometric="minisblack" if picture.channels < 3 else "rgb",
                    planarconfig="contig" if picture.channels > 1 else None,
                    extrasamples=["unassalpha"] if picture.has_alpha else None,
                    compression="jpeg" if lossy else "zlib",
                    compressionargs={"level": quality if lossy else _TIFF_DEFLATE_LEVEL},
                    predictor=not lossy,
                    iccprofile=picture.icc_profile,
                    metadata=None,
                    software=False,
                    maxworkers=1,
                )
            return _with_one_directory(buffer.getvalue()) if exif else buffer.getvalue()
        except Exception:
            if exif is None:
                raise  # else the block is damaged, in whatever way: write without it
    raise AssertionError("unreachable")


def _with_one_directory(data: bytes) -> bytes:
    """Return a TIFF whose only directory is its last, with those entries of its first that the last doesn't have."""
    order = "<" if data[:2] == b"II" else ">"
    first, *_, last = _tiff_directories(data, order)
    entries = {**_tiff_entries(data, order, first), **_tiff_entries(data, order, last)}
    data += b"\0" * (len(data) % 2)  # directories lie on even bytes
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return data[:4] + struct.pack(order + "I", len(data)) + data[8:] + directory


def _tiff_directories(data: bytes, order: str) -> list[int]:
    """Return where the directories of a TIFF's chain are."""
    found = []
    position = struct.unpack_from(order + "I", data, 4)[0]
    while position and position not in found:
        found.append(position)
        count = struct.unpack_from(order + "H", data, position)[0]
        position = struct.unpack_from(order + "I", data, position + 2 + 12 * count)[0]
    return found


def _tiff_entries(data: bytes, order: str, directory: int) -> dict[int, bytes]:
    """Return a directory's entries, whole, by their tags."""
    count = struct.unpack_from(order + "H", data, directory)[0]
    entries = [data[directory + 2 + 12 * index :][:12] for index in range(count)]
    return {struct.unpack_from(order + "H", entry)[0]: entry for entry in entries}


# ---- writing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoding:
    """How to write a picture; None: as the picture was.

    Encoding()                                # the picture's own format and depth
    Encoding(format="jpeg", quality=85)
    Encoding(format="png", bit_depth=16)
    """

    format: str | None = None
    quality: int | None = None  # 1 to 100, of lossy formats; default 95; makes WebP and TIFF lossy
    bit_depth: int | None = None  # 8 or 16


@dataclass(frozen=True)
class _Format:
    """What a format that can be written holds."""

    depths: tuple[int, ...]
    alpha: bool
    longest_side: int


_FORMATS = {
    "png": _Format((8, 16), alpha=True, longest_side=2**31 - 1),
    "jpeg": _Format((8,), alpha=False, longest_side=65500),
    "webp": _Format((8,), alpha=True, longest_side=16383),
    "tiff": _Format((8, 16), alpha=True, longest_side=2**31 - 1),
    "bmp": _Format((8,), alpha=False, longest_side=2**31 - 1),
}


def output_format(picture: Picture, encoding: Encoding = Encoding()) -> str:
    """Return the format that `encode` will use: the one asked for; else the picture's, or `png` where that cannot be
    written or cannot hold the result's alpha, depth or size."""
    if encoding.format is not None:
        return encoding.format
    kind = _FORMATS.get(picture.source_format)
    bits = encoding.bit_depth or picture.bit_depth
    if kind is None or bits not in kind.depths or (picture.has_alpha and not kind.alpha):
        return "png"
    return picture.source_format if max(picture.width, picture.height) <= kind.longest_side else "png"


def encode(picture: Picture, encoding: Encoding = Encoding(), *, field: str = "output") -> bytes:
    """Write a picture to a file.

    A format that is asked for and holds 8 bits gets 8, unless 16 are asked for. Alpha that is opaque everywhere is left
    out where the format has none; other alpha is refused rather than put on a background nobody chose. BMP holds
    neither profile nor EXIF, and JPEG no EXIF over 64 KiB: these are left out.
    Raises BadArgument, with a violation of `field`.format, .quality or .bit_depth, and the formats that can.
    """
    if encoding.quality is not None and not 1 <= encoding.quality <= 100:
        raise BadArgument(f"quality is {encoding.quality}; give 1 to 100", field=f"{field}.quality")
    if encoding.bit_depth not in (None, 8, 16):
        raise BadArgument(f"bit depth is {encoding.bit_depth}; give 8 or 16", field=f"{field}.bit_depth")
    name = output_format(picture, encoding)
    kind = _FORMATS.get(name)
    if kind is None:
        known = ", ".join(_FORMATS)
        raise BadArgument(f"{name!r} cannot be written; ask for one of: {known}", field=f"{field}.format")
    bits = encoding.bit_depth or (picture.bit_depth if picture.bit_depth in kind.depths else 8)
    if bits not in kind.depths:
        raise _cannot(f"{name} holds no {bits} bits", lambda other: bits in other.depths, f"{field}.bit_depth")
    side = max(picture.width, picture.height)
    if side > kind.longest_side:
        raise _cannot(
            f"{name} holds sides up to {kind.longest_side} pixels, this picture has {side}",
            lambda other: side <= other.longest_side,
            f"{field}.format",
        )
    picture = picture.with_bit_depth(bits)
    if picture.has_alpha and not kind.alpha:
        if picture.pixels[:, :, -1].min() < picture.maximum:
            raise _cannot(f"{name} holds no transparency", lambda other: other.alpha, f"{field}.format")
        picture = picture.with_pixels(picture.colour())
    if name == "png":
        return _encode_png(picture)
    if name == "tiff":
        return _encode_tiff(picture, encoding.quality)
    return _encode_with_pillow(picture, name, encoding.quality)


def _cannot(what: str, can: Callable[[_Format], bool], field: str) -> BadArgument:
    """Return the error that names the formats that can."""
    able = ", ".join(name for name, kind in _FORMATS.items() if can(kind))
    return BadArgument(f"{what}; ask for one of: {able}", field=field)


def _encode_with_pillow(picture: Picture, name: str, quality: int | None) -> bytes:
    """Write JPEG, WebP or BMP of 8 bits."""
    image = Image.fromarray(picture.pixels if picture.channels > 1 else picture.pixels[:, :, 0])
    options: dict[str, Any] = {}
    if name == "jpeg":
        quality = 95 if quality is None else quality
        # At high quality colours keep their full resolution (4:4:4), below that half of it (4:2:0).
        options = {"quality": quality, "subsampling": 0 if quality >= 90 else 2}
    elif name == "webp":
        options = {"lossless": True, "quality": 0, "method": 0, "exact": True}
        if quality is not None:
            options = {"quality": quality}
    if name != "bmp":
        options["icc_profile"] = picture.icc_profile
        exif = b"Exif\0\0" + picture.exif if picture.exif else b""
        if exif and (name != "jpeg" or len(exif) <= _LONGEST_JPEG_EXIF):
            options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, name.upper(), **options)
    return buffer.getvalue()
