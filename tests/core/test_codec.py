"""What files do to pixels. Files are made by Pillow, tifffile and imagecodecs, not by the codec that is tested."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

from limner.core import codec
from limner.core.codec import Encoding, Limits, decode, encode, output_format
from limner.core.errors import BadArgument, BadImage, ImageTooLarge
from limner.core.picture import Picture

seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 40)
depths = st.sampled_from([np.uint8, np.uint16])

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()


def exif_block(orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    if orientation is not None:
        exif[0x0112] = orientation
    exif[0x8769] = {0x9003: "2024:01:02 03:04:05", 0x829A: IFDRational(1, 100), 0x927C: b"maker's note"}
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}
    return exif.tobytes().removeprefix(b"Exif\0\0")


def tags(exif: bytes | None) -> Image.Exif:
    loaded = Image.Exif()
    loaded.load(exif or b"")
    return loaded


# ---- round trips --------------------------------------------------------------------------------------------------


@given(seeds, sides, sides, st.integers(1, 4), depths, st.sampled_from(["png", "tiff"]), st.booleans(), st.booleans())
@settings(deadline=None)
def test_png_and_tiff_hold_every_picture_bit_by_bit(
    seed: int, width: int, height: int, channels: int, dtype: type, kind: str, with_icc: bool, with_exif: bool
) -> None:
    pixels = noise(height, width, channels, dtype=dtype, seed=seed)
    exif = exif_block() if with_exif else None
    picture = Picture(pixels, SRGB if with_icc else None, exif, kind)
    back = decode(encode(picture))
    assert back.pixels.dtype == dtype
    assert np.array_equal(back.pixels, pixels)
    assert back.source_format == kind
    assert back.icc_profile == picture.icc_profile
    assert (back.exif is not None) == with_exif
    if with_exif:
        assert dict(tags(back.exif)) == dict(tags(exif)) or tags(back.exif)[0x010F] == "Maker"
        assert tags(back.exif).get_ifd(0x8769)[0x9003] == "2024:01:02 03:04:05"


@given(seeds, sides, sides, st.sampled_from([("webp", 3), ("webp", 4), ("bmp", 1), ("bmp", 3)]))
@settings(deadline=None)
def test_lossless_webp_and_bmp_hold_what_they_can_bit_by_bit(
    seed: int, width: int, height: int, kind: tuple[str, int]
) -> None:
    name, channels = kind
    pixels = noise(height, width, channels, seed=seed)
    back = decode(encode(Picture(pixels, source_format=name)))
    if channels == 4 and (pixels[:, :, 3] == 255).all():
        pixels = pixels[:, :, :3]  # libwebp leaves out alpha that is opaque everywhere
    assert np.array_equal(back.pixels, pixels)
    assert back.source_format == name


def test_colours_under_full_transparency_survive_webp() -> None:
    pixels = noise(8, 8, 4)
    pixels[:, :, 3] = 0
    assert np.array_equal(decode(encode(Picture(pixels, source_format="webp"))).pixels, pixels)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_profile_and_exif_survive(kind: str) -> None:
    exif = exif_block()
    back = decode(encode(Picture(noise(8, 8, 3), SRGB, exif, kind)))
    assert back.icc_profile == SRGB
    assert tags(back.exif)[0x010F] == "Maker"
    assert tags(back.exif).get_ifd(0x8769)[0x829A] == pytest.approx(0.01)
    assert tags(back.exif).get_ifd(0x8769)[0x927C] == b"maker's note"
    assert tags(back.exif).get_ifd(0x8825)[2] == (52.0, 30.0, 0.0)
    if kind != "tiff":  # a TIFF's are tags among others
        assert back.exif == exif


def test_written_files_are_read_alike_by_others() -> None:
    picture = Picture(noise(9, 7, 3, dtype=np.uint16), SRGB, exif_block())
    png, tif = encode(picture), encode(picture, Encoding("tiff"))
    assert np.array_equal(imagecodecs.png_decode(png), picture.pixels)
    with Image.open(io.BytesIO(png)) as image:
        assert image.info["icc_profile"] == SRGB
        assert image.getexif()[0x010F] == "Maker"
    with tifffile.TiffFile(io.BytesIO(tif)) as file:
        assert len(file.pages) == 1
        assert np.array_equal(file.asarray(), picture.pixels)
        assert file.pages.first.iccprofile == SRGB
    with Image.open(io.BytesIO(tif)) as image:
        assert image.getexif()[0x010F] == "Maker"
        assert image.getexif().get_ifd(0x8769)[0x9003] == "2024:01:02 03:04:05"


def test_damaged_exif_is_left_out_of_a_tiff() -> None:
    pixels = noise(4, 4, 3)
    for exif in (b"II*\0\xff\xff\xff\xff", b"garbage", b"MM\0*\0\0\0\x08\xff\xff"):
        assert np.array_equal(decode(encode(Picture(pixels, exif=exif), Encoding("tiff"))).pixels, pixels)


# ---- what is written ----------------------------------------------------------------------------------------------


def test_jpeg_keeps_full_colour_resolution_at_high_quality() -> None:
    def sampling(quality: int | None) -> list[tuple[int, int]]:
        with Image.open(io.BytesIO(encode(Picture(noise(16, 16, 3)), Encoding("jpeg", quality)))) as image:
            return [(layer[1], layer[2]) for layer in image.layer]

    assert sampling(None) == sampling(90) == [(1, 1)] * 3
    assert sampling(89)[0] == (2, 2)


@pytest.mark.parametrize("kind", ["jpeg", "webp", "tiff"])
def test_quality_makes_files_smaller(kind: str) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)[:, :, None] + noise(64, 64, 3) // 16
    sizes = [len(encode(Picture(smooth), Encoding(kind, quality))) for quality in (10, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] * 0.7


@pytest.mark.parametrize("kind", ["webp", "tiff"])
def test_without_a_quality_webp_and_tiff_are_lossless(kind: str) -> None:
    pixels = noise(16, 16, 3)
    assert np.array_equal(decode(encode(Picture(pixels), Encoding(kind))).pixels, pixels)
    assert not np.array_equal(decode(encode(Picture(pixels), Encoding(kind, 80))).pixels, pixels)


def test_a_tiff_that_jpeg_cannot_fill_stays_lossless() -> None:
    for pixels in (noise(16, 16, 4), noise(16, 16, 3, dtype=np.uint16)):
        assert np.array_equal(decode(encode(Picture(pixels), Encoding("tiff", 80))).pixels, pixels)


def test_the_format_is_kept_where_it_can_hold_the_result() -> None:
    def name(channels: int, dtype: type, source: str, **encoding: Any) -> str:
        return output_format(Picture(np.zeros((2, 2, channels), dtype), source_format=source), Encoding(**encoding))

    assert name(3, np.uint8, "jpeg") == "jpeg"
    assert name(4, np.uint8, "jpeg") == "png"
    assert name(3, np.uint16, "jpeg") == "png"
    assert name(3, np.uint16, "jpeg", bit_depth=8) == "jpeg"
    assert name(3, np.uint8, "webp", bit_depth=16) == "png"
    assert name(4, np.uint16, "tiff") == "tiff"
    assert name(3, np.uint8, "gif") == "png"
    assert name(4, np.uint8, "bmp") == "png"
    assert name(3, np.uint8, "png", format="bmp") == "bmp"
    assert output_format(Picture(np.zeros((1, 16384, 3), np.uint8), source_format="webp")) == "png"


def test_depth_is_changed_when_asked() -> None:
    deep = decode(encode(Picture(noise(4, 4, 3)), Encoding(bit_depth=16)))
    assert deep.bit_depth == 16
    assert np.array_equal(deep.pixels, noise(4, 4, 3).astype(np.uint16) * 257)
    shallow = decode(encode(deep, Encoding("png", bit_depth=8)))
    assert np.array_equal(shallow.pixels, noise(4, 4, 3))
    # A format that holds 8 bits was asked for by name, so 8 are meant.
    assert decode(encode(deep, Encoding("bmp"))).bit_depth == 8


@pytest.mark.parametrize(
    ("channels", "encoding", "field", "words"),
    [
        (3, Encoding("jpeg", bit_depth=16), "output.bit_depth", "png, tiff"),
        (4, Encoding("jpeg"), "output.format", "png, webp, tiff"),
        (2, Encoding("bmp"), "output.format", "png, webp, tiff"),
        (3, Encoding("gif"), "output.format", "png, jpeg, webp, tiff, bmp"),
        (3, Encoding("nonsense"), "output.format", "png, jpeg, webp, tiff, bmp"),
        (3, Encoding(quality=0), "output.quality", "1 to 100"),
        (3, Encoding(quality=101), "output.quality", "1 to 100"),
        (3, Encoding(bit_depth=12), "output.bit_depth", "8 or 16"),
    ],
)
def test_what_cannot_be_written_is_refused_with_what_can(
    channels: int, encoding: Encoding, field: str, words: str
) -> None:
    with pytest.raises(BadArgument, match=words) as caught:
        encode(Picture(noise(4, 4, channels)), encoding)
    assert caught.value.violations[0].field == field


def test_sides_longer_than_a_format_holds_are_refused() -> None:
    with pytest.raises(BadArgument, match="16383"):
        encode(Picture(np.zeros((1, 16384, 3), np.uint8)), Encoding("webp"))


def test_opaque_alpha_is_left_out_of_a_jpeg() -> None:
    pixels = noise(8, 8, 4)
    pixels[:, :, 3] = 255
    assert decode(encode(Picture(pixels), Encoding("jpeg"))).channels == 3


def test_exif_too_long_for_a_jpeg_is_left_out() -> None:
    long_exif = exif_block() + bytes(70000)
    assert decode(encode(Picture(noise(4, 4, 3), exif=long_exif), Encoding("jpeg"))).exif is None
    assert decode(encode(Picture(noise(4, 4, 3), exif=long_exif))).exif == long_exif


# ---- orientation --------------------------------------------------------------------------------------------------

# What EXIF says about the first row and column of the file, as numpy undoes it.
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "png16", "tiff16"])
def test_orientation_is_applied_once_and_set_to_1(kind: str, orientation: int) -> None:
    exif = exif_block(orientation)
    pixels = noise(6, 10, 3, dtype=np.uint16 if kind.endswith("16") else np.uint8)
    if kind == "png16":
        data = encode(Picture(pixels, exif=exif))
    elif kind == "tiff16":
        data = tiff(pixels, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    else:
        data = saved(
            Image.fromarray(pixels), kind, exif=b"Exif\0\0" + exif, **({"lossless": True} if kind == "webp" else {})
        )
    if kind == "jpeg":
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(image)
    picture = decode(data)
    assert np.array_equal(picture.pixels, UPRIGHT[orientation](pixels))
    if picture.exif:
        assert tags(picture.exif).get(0x0112, 1) == 1
    again = decode(encode(picture, Encoding("png")))
    assert np.array_equal(again.pixels, picture.pixels)


@pytest.mark.parametrize("order", ["<", ">"])
def test_only_the_orientation_of_exif_is_changed(order: str) -> None:
    def block(orientation: int) -> bytes:
        entries = struct.pack(order + "HHII", 0x0100, 4, 1, 77)
        entries += struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
        head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, 2)
        return head + entries + bytes(4) + b"maker's own"

    picture = decode(encode(Picture(noise(6, 10, 3), exif=block(6))))
    assert (picture.width, picture.height) == (6, 10)
    assert picture.exif == block(1)


def test_orientations_that_mean_nothing_and_damaged_exif_are_ignored() -> None:
    pixels = noise(6, 10, 3)
    for exif in (exif_block(9), exif_block(0), b"II*\0\x08\0\0\0\xff\xff", b"garbage"):
        assert np.array_equal(decode(encode(Picture(pixels, exif=exif))).pixels, pixels)


# ---- modes --------------------------------------------------------------------------------------------------------


def test_one_bit_becomes_black_and_white() -> None:
    bits = noise(9, 11) > 127
    for kind in ("PNG", "TIFF", "BMP"):
        picture = decode(saved(Image.fromarray(bits), kind))
        assert picture.pixels.dtype == np.uint8
        assert np.array_equal(picture.pixels[:, :, 0] == 255, bits)
        assert (picture.pixels[:, :, 0] == picture.pixels[:, :, -1]).all()


def test_palettes_become_their_colours() -> None:
    colours = noise(4, 3)
    index = noise(6, 7) % 4
    image = Image.fromarray(index.astype(np.uint8)).convert("P")
    image.putdata(index.ravel().tolist())
    image.putpalette(colours.ravel().tolist())
    for kind in ("PNG", "GIF", "TIFF", "BMP"):
        assert np.array_equal(decode(saved(image, kind)).pixels, colours[index]), kind

    one_clear = decode(saved(image, "PNG", transparency=2))
    assert np.array_equal(one_clear.pixels[:, :, :3], colours[index])
    assert np.array_equal(one_clear.pixels[:, :, 3], np.where(index == 2, 0, 255))

    alphas = np.array([10, 0, 255, 128], np.uint8)
    soft = decode(saved(image, "PNG", transparency=alphas.tobytes()))
    assert np.array_equal(soft.pixels, np.dstack([colours[index], alphas[index]]))

    gif = decode(saved(image, "GIF", transparency=1))
    assert np.array_equal(gif.pixels[:, :, 3] == 0, index == 1)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_a_png_becomes_alpha(channels: int, dtype: type) -> None:
    pixels = (noise(6, 7, channels) % 2 * 200).astype(dtype)
    png = imagecodecs.png_encode(pixels)
    key = struct.pack(f">{channels}H", *[200] * channels)
    picture = decode(png[:33] + chunk(b"tRNS", key) + png[33:])
    top = np.iinfo(dtype).max
    assert picture.pixels.dtype == dtype
    assert np.array_equal(picture.colour(), pixels)
    assert np.array_equal(picture.alpha(), np.where((pixels == 200).all(axis=2), 0, top))


@pytest.mark.parametrize(
    ("mode", "channels"),
    [
        ("1", 1), ("L", 1), ("P", 3), ("LA", 2), ("La", 2), ("PA", 4), ("RGB", 3), ("RGBA", 4), ("RGBa", 4),
        ("RGBX", 3), ("CMYK", 3), ("YCbCr", 3), ("LAB", 3), ("HSV", 3), ("I", 1), ("I;16", 1), ("I;16L", 1),
        ("I;16B", 1),
    ],
)  # fmt: skip
def test_every_mode_of_pillow_becomes_a_picture(mode: str, channels: int) -> None:
    sixteen = mode.startswith("I")
    picture = Picture(codec._pixels(Image.new(mode, (5, 3)), "image")[0])
    assert picture.pixels.shape == (3, 5, channels)
    assert picture.bit_depth == (16 if sixteen else 8)


def test_premultiplied_alpha_is_made_straight() -> None:
    image = Image.new("RGBa", (1, 1))
    image.putpixel((0, 0), (50, 100, 0, 128))
    assert np.abs(codec._pixels(image, "image")[0][0, 0].astype(int) - [100, 199, 0, 128]).max() <= 1

    deep = np.array([[[8000, 16000, 0, 32768], [1, 2, 3, 0]]], np.uint16)
    picture = decode(tiff(deep, photometric="rgb", extrasamples=["assocalpha"]))
    assert picture.pixels.tolist() == [[[16000, 32000, 0, 32768], [0, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("ink", "colour"), [((0, 0, 0, 0), (255, 255, 255)), ((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))]
)
def test_plain_cmyk_is_not_inverted(ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    image = Image.new("CMYK", (8, 8), ink)
    for kind in ("JPEG", "TIFF"):  # Pillow writes JPEG as Adobe does, inverted
        assert np.abs(decode(saved(image, kind)).pixels.astype(int) - colour).max() <= 3
    deep = np.broadcast_to(np.array(ink, np.uint16) * 257, (8, 8, 4))
    picture = decode(tiff(deep, photometric="separated"))
    assert np.abs(picture.pixels.astype(int) - colour).max() <= 3


def cmyk_profile(lab_of_ink: np.ndarray) -> bytes:
    """A CMYK profile of one table: (2, 2, 2, 2, 3) uint8 Lab, L in 0 to 255 and a, b from 128, by ink off or on."""
    identity = bytes(range(256))
    matrix = struct.pack(">9I", *(65536 if index in (0, 4, 8) else 0 for index in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + lab_of_ink.tobytes() + identity * 3
    texts = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"inks\0" + bytes(78), b"cprt": b"text" + bytes(5)}
    white = b"XYZ " + bytes(4) + struct.pack(">3I", 63190, 65536, 54061)
    content = {**texts, b"wtpt": white, b"A2B0": table}
    offset = 132 + 12 * len(content)
    listed, body = struct.pack(">I", len(content)), b""
    for name, value in content.items():
        value += bytes(-len(value) % 4)
        listed += name + struct.pack(">II", offset + len(body), len(value))
        body += value
    head = struct.pack(">I4sI4s4s4s", offset + len(body), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3I", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + listed + body


def test_cmyk_goes_through_its_profile_which_is_not_kept() -> None:
    lab = np.zeros((2, 2, 2, 2, 3), np.uint8)
    lab[:] = (255, 128, 128)  # no ink leaves paper white ...
    lab[1] = (137, 208, 195)  # ... and "cyan" of this press is a red
    for kind in ("TIFF", "JPEG"):
        picture = decode(saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), kind, icc_profile=cmyk_profile(lab)))
        red, green, blue = picture.pixels[0, 0].astype(int)
        assert red > 200
        assert max(green, blue) < 60
        assert picture.icc_profile is None
        assert decode(saved(Image.new("CMYK", (8, 8)), kind, icc_profile=cmyk_profile(lab))).pixels.min() >= 253


def test_cmyk_with_a_broken_profile_is_read_as_plain_inks() -> None:
    data = saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF", icc_profile=b"no profile")
    assert np.abs(decode(data).pixels[0, 0].astype(int) - [0, 255, 255]).max() <= 3


def test_lab_becomes_srgb() -> None:
    rgb = Image.new("RGB", (8, 8), (200, 90, 30))
    lab = ImageCms.profileToProfile(
        rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    assert np.abs(decode(saved(lab, "TIFF")).pixels.astype(int) - [200, 90, 30]).max() <= 3


def test_sixteen_bit_grey_keeps_its_values() -> None:
    pixels = noise(6, 7, dtype=np.uint16)
    big_endian = Image.frombytes("I;16B", (7, 6), pixels.astype(">u2").tobytes())
    for data in (
        saved(Image.fromarray(pixels), "PNG"),
        saved(Image.fromarray(pixels), "TIFF"),
        saved(big_endian, "TIFF"),
        saved(Image.fromarray(pixels.astype(np.int32)), "TIFF"),
        b"P5 7 6 65535\n" + pixels.astype(">u2").tobytes(),
    ):
        picture = decode(data)
        assert picture.pixels.dtype == np.uint16
        assert np.array_equal(picture.pixels[:, :, 0], pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"compression": "lzw"}, {"compression": "zlib", "predictor": True}, {"compression": "packbits"},
        {"byteorder": ">"}, {"planarconfig": "separate"}, {"tile": (16, 16), "compression": "lzw"}, {"bigtiff": True},
        {"planarconfig": "separate", "compression": "zlib", "predictor": True, "tile": (16, 16)},
    ],
    ids=str,
)  # fmt: skip
def test_tiffs_of_all_kinds_keep_their_values(channels: int, dtype: type, options: dict[str, Any]) -> None:
    pixels = noise(21, 33, channels, dtype=dtype)
    options = {"planarconfig": "contig", "rowsperstrip": None if "tile" in options else 5, **options}
    stored = np.ascontiguousarray(np.moveaxis(pixels, 2, 0)) if options["planarconfig"] == "separate" else pixels
    if channels == 1:
        stored, options["planarconfig"] = pixels[:, :, 0], None
    photometric = "rgb" if channels > 2 else "minisblack"
    extra = ["unassalpha"] if channels in (2, 4) else None
    assert np.array_equal(decode(tiff(stored, photometric=photometric, extrasamples=extra, **options)).pixels, pixels)


def test_extra_channels_that_are_not_alpha_are_left_out() -> None:
    pixels = noise(4, 5, 4)
    assert np.array_equal(
        decode(tiff(pixels, photometric="rgb", extrasamples=["unspecified"])).pixels, pixels[:, :, :3]
    )


def test_white_is_zero_tiffs_are_turned() -> None:
    for dtype in (np.uint8, np.uint16):
        pixels = noise(4, 5, dtype=dtype)
        picture = decode(tiff(pixels, photometric="miniswhite"))
        assert np.array_equal(picture.pixels[:, :, 0], np.iinfo(dtype).max - pixels)


def test_floating_point_pixels_are_refused_with_the_mend() -> None:
    for pixels, photometric in ((noise(4, 4), "minisblack"), (noise(4, 4, 3), "rgb")):
        with pytest.raises(BadImage, match="convert it to 8 or 16 bits"):
            decode(tiff(pixels.astype(np.float32), photometric=photometric))
    with pytest.raises(BadImage, match="convert it to 8 or 16 bits"):
        codec._pixels(Image.new("F", (2, 2)), "image")


def test_integers_beyond_sixteen_bits_are_refused_with_the_mend() -> None:
    for value in (-1, 70000):
        with pytest.raises(BadImage, match="convert it to 8 or 16 bits"):
            decode(saved(Image.new("I", (2, 2), value), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    picture = decode(data)
    assert (picture.width, picture.height) == (5, 4)
    assert (picture.rgb8() == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "PPM", "TGA", "PCX", "DDS", "QOI", "SGI"])
def test_other_formats_are_read_and_written_as_png(kind: str) -> None:
    picture = decode(saved(Image.new("RGB", (16, 16), (10, 200, 30)), kind))
    assert np.abs(picture.pixels.astype(int) - [10, 200, 30]).max() <= 3
    assert picture.source_format == kind.lower()
    assert output_format(picture) == "png"


# ---- bad input ----------------------------------------------------------------------------------------------------


def decoded_or_refused(data: bytes, limits: Limits = Limits()) -> Picture | None:  # noqa: B008 (it is frozen)
    """Decode; None if that was refused as it should be. Any other error is the test's failure."""
    try:
        return decode(data, limits)
    except (BadImage, ImageTooLarge) as error:
        if [violation.field for violation in error.violations] != ["image"]:
            raise
        return None


def small_files() -> dict[str, bytes]:
    smooth = (np.add.outer(np.arange(24) * 5, np.arange(31) * 4)[:, :, None] + [0, 20, 40]).astype(np.uint8)
    smooth += noise(24, 31, 3) % 8
    image, deep = Image.fromarray(smooth), smooth.astype(np.uint16) * 257
    files = {kind: saved(image, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "PPM", "QOI", "TIFF", "TGA", "AVIF")}
    return files | {
        "progressive": saved(image, "JPEG", progressive=True, exif=b"Exif\0\0" + exif_block(6), icc_profile=SRGB),
        "palette": saved(image.quantize(16), "PNG", transparency=3),
        "GIF": saved(image.quantize(16), "GIF"),
        "lossless": saved(image, "WEBP", lossless=True),
        "PNG16": imagecodecs.png_encode(deep),
        "TIFF jpeg": saved(image, "TIFF", compression="jpeg"),
        "TIFF lzw": saved(image, "TIFF", compression="tiff_lzw"),
        "TIFF16": tiff(deep, photometric="rgb", rowsperstrip=7),
        "TIFF16 lzw": tiff(deep, photometric="rgb", compression="lzw", rowsperstrip=7),
        "TIFF16 tiles": tiff(deep, photometric="rgb", compression="zlib", tile=(16, 16)),
    }


FILES = small_files()


@pytest.mark.parametrize("kind", FILES)
def test_truncated_files_are_refused_and_never_half_a_picture(kind: str) -> None:
    data = FILES[kind]
    whole = decode(data).pixels
    for length in [*range(0, len(data), max(1, len(data) // 40)), len(data) - 1]:
        picture = decoded_or_refused(data[:length])
        # What is read in spite of it only lacks what comes after the pixels.
        assert picture is None or np.array_equal(picture.pixels, whole)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_is_cut_off_and_ended_is_refused_and_not_grey_below(mode: str) -> None:
    data = saved(Image.fromarray(noise(64, 64, 3)).convert(mode), "JPEG")
    with pytest.raises(BadImage, match="cut off"):
        decode(data[: len(data) * 2 // 3] + b"\xff\xd9")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2, "quality": 30}])
def test_jpegs_are_read_as_pillow_reads_them_also_with_bytes_too_many(mode: str, options: dict[str, Any]) -> None:
    data = saved(Image.fromarray(noise(37, 45, 3)).convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("L" if mode == "L" else "RGB")).reshape(37, 45, -1)
    for sound in (data, data + b"more", data[:-2] + b"\0\0\0" + data[-2:]):
        picture = decode(sound)
        assert (picture.pixels == expected).all()
        assert picture.source_format == "jpeg"


def test_profiles_of_megabytes_are_kept_in_pngs() -> None:
    profile = noise(1, 3_000_000, 1).tobytes()
    for kind in ("png", "tiff", "jpeg"):
        first = decode(encode(Picture(noise(4, 5, 3), profile), Encoding(kind)))
        assert first.icc_profile == profile
        assert decode(encode(first, Encoding("png"))).icc_profile == profile


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("tag", "change"),
    [
        ("StripByteCounts", lambda values: (0, *values[1:])),
        ("StripOffsets", lambda values: (*values[:-1], 10**6)),
        ("StripOffsets", lambda values: (*values[:-1], 0)),
        ("ImageLength", lambda values: 33),
    ],
)
def test_tiffs_that_lack_strips_are_refused_and_not_filled_with_black(
    tag: str, change: Any, compression: str | None
) -> None:
    file = io.BytesIO(tiff(noise(30, 31, 3), photometric="rgb", rowsperstrip=10, compression=compression))
    with tifffile.TiffFile(file, mode="r+") as opened:
        entry = opened.pages.first.tags[tag]
        entry.overwrite(change(entry.value))
    with pytest.raises(BadImage):
        decode(file.getvalue())


@given(
    st.sampled_from(sorted(FILES)),
    st.lists(
        st.tuples(st.integers(0, 1 << 16), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1) | st.just(0)),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_files_raise_nothing_but_our_errors(
    kind: str, changes: list[tuple[int, int, int]], in_header: bool
) -> None:
    data = bytearray(FILES[kind])
    for position, width, value in changes:
        position %= min(len(data), 200) if in_header else len(data)
        data[position : position + width] = (value % 256**width).to_bytes(width, "little")
    picture = decoded_or_refused(bytes(data), Limits(max_pixels=1_000_000))
    assert picture is None or picture.size.pixels <= 1_000_000


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"BM", b"GIF89a"])
)
@settings(deadline=None, max_examples=200)
def test_bytes_that_are_no_image_raise_nothing_but_our_errors(rest: bytes, beginning: bytes) -> None:
    picture = decoded_or_refused(beginning + rest, Limits(max_pixels=1_000_000))
    assert picture is None or picture.size.pixels <= 1_000_000


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_refused_with_the_field(data: bytes) -> None:
    with pytest.raises(BadImage, match="send") as caught:
        decode(data, field="source")
    assert caught.value.violations[0].field == "source"


def png_header(width: int, height: int, bits: int = 8) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("width", "height"), [(9000, 9000), (10000, 10000), (60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_by_their_header(width: int, height: int, bits: int) -> None:
    data = png_header(width, height, bits) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(ImageTooLarge) as caught:
        decode(data, field="source")
    assert caught.value.metadata == {"limit": "64000000", "actual": str(width * height)}
    assert caught.value.violations[0].field == "source"


def test_large_tiffs_are_refused_by_their_header() -> None:
    data = tiff(noise(30, 30, 3, dtype=np.uint16), photometric="rgb", compression="zlib")
    with pytest.raises(ImageTooLarge, match="30 × 30") as caught:
        decode(data, Limits(max_pixels=899))
    assert caught.value.metadata == {"limit": "899", "actual": "900"}


def test_pixels_and_bytes_are_accepted_up_to_the_limit() -> None:
    data = FILES["PNG"]
    assert decode(data, Limits(max_bytes=len(data), max_pixels=24 * 31)).height == 24
    with pytest.raises(ImageTooLarge) as caught:
        decode(data, Limits(max_pixels=24 * 31 - 1))
    assert caught.value.metadata == {"limit": "743", "actual": "744"}
    with pytest.raises(ImageTooLarge) as caught:
        decode(data, Limits(max_bytes=len(data) - 1))
    assert caught.value.metadata == {"limit": str(len(data) - 1), "actual": str(len(data))}


@pytest.mark.parametrize(
    "data",
    [
        png_header(0, 5) + chunk(b"IEND", b""),
        png_header(5, 0, 16) + chunk(b"IEND", b""),
        b"GIF89a" + bytes(7) + b";",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 0, 0, 1, 24, 0, 0, 0, 0, 0, 0),
        b"P6 0 0 255\n",
    ],
)
def test_pictures_without_pixels_are_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        decode(data)


def test_decoding_is_safe_in_many_threads() -> None:
    wanted = {kind: decode(data).pixels for kind, data in FILES.items()}
    with ThreadPoolExecutor(8) as pool:
        jobs = [(kind, pool.submit(decode, data)) for _ in range(6) for kind, data in FILES.items()]
        broken = [pool.submit(decode, data[: len(data) // 2]) for data in FILES.values()]
    assert all(np.array_equal(job.result().pixels, wanted[kind]) for kind, job in jobs)
    assert all(isinstance(job.exception(), BadImage) for job in broken)
