"""Pictures as a caller has them: a path, bytes, an open file, or an Image message. Never looks at a pixel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, TypeAlias

from limner.v1 import images_pb2

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | images_pb2.Image"

_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (8, b"WEBP", "webp"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (0, b"BM", "bmp"),
    (0, b"GIF8", "gif"),
)
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp", "gif": ".gif"}
_FORMATS = {suffix: name for name, suffix in _SUFFIXES.items()} | {".jpeg": "jpeg", ".tiff": "tiff"}
READABLE_SUFFIXES = frozenset(_FORMATS)
WRITABLE_FORMATS = ("png", "jpeg", "webp", "tiff", "bmp")


def read(source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO) -> bytes:
    """The bytes of an image file. Raises OSError where there is no such file, TypeError for anything else."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).read_bytes()
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise TypeError("the file is open as text; open it with mode 'rb'")
        return data
    raise TypeError(f"expected a path, bytes or a binary file, not {type(source).__name__}")


def suffix_of(data: bytes) -> str:
    """The file name suffix that fits the bytes, `.png` for instance; `.bin` for raw pixels and formats unknown here."""
    for offset, signature, name in _SIGNATURES:
        if data.startswith(signature, offset):
            return _SUFFIXES[name]
    return ".bin"


def format_of(path: str | os.PathLike[str]) -> str | None:
    """What a file of that name should hold, as OutputOptions names it; None if no picture can be written to it."""
    found = _FORMATS.get(Path(path).suffix.lower())
    return found if found in WRITABLE_FORMATS else None


def writable_suffixes() -> list[str]:
    """The suffixes, in order, for which `format_of` knows a format."""
    return sorted(suffix for suffix, name in _FORMATS.items() if name in WRITABLE_FORMATS)


def format_named(text: str) -> str | None:
    """The format that somebody means by `JPG`, `.tif` or `png`; None if no picture can be written in it."""
    name = text.strip().lower().removeprefix(".")
    name = _FORMATS.get(f".{name}", name)
    return name if name in WRITABLE_FORMATS else None
