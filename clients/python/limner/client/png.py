"""PNG files chunk by chunk: texts are read from them and put into them, and no pixel is touched.

Texts stand in iTXt chunks, in UTF-8 (PNG specification, third edition, 11.3.3.4); tEXt and zTXt chunks are read too.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 1 << 20  # of a compressed text: a small file may hold one that fills the memory
_Chunk = tuple[bytes, bytes]  # type and data


def read_texts(data: bytes) -> dict[str, str]:
    """The texts of a PNG file by their keywords; of what can't be read nothing. Raises ValueError for other files."""
    texts = {}
    for kind, content in _chunks(data):
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, _, rest = content.partition(b"\0")
            text = _READERS[kind](rest)
            if text is not None:
                texts[keyword.decode("latin-1")] = text
    return texts


def with_texts(data: bytes, texts: Mapping[str, str]) -> bytes:
    """A PNG file with texts by keyword, instead of those that it has under these keywords. Keywords are ASCII, of 1 to
    79 characters. All else stays as it is, byte by byte. Raises ValueError for what is no whole PNG file."""
    chunks = [chunk for chunk in _chunks(data) if not _has_keyword(chunk, texts)]
    added = [(b"iTXt", keyword.encode("ascii") + b"\0\0\0\0\0" + text.encode()) for keyword, text in texts.items()]
    # Before the pixels: many programs don't read what comes after them.
    return SIGNATURE + b"".join(_written(chunk) for chunk in (chunks[0], *added, *chunks[1:]))


def _chunks(data: bytes) -> Iterator[_Chunk]:
    if not data.startswith(SIGNATURE):
        raise ValueError("this is no PNG file")
    position = len(SIGNATURE)
    while True:
        length, kind = struct.unpack(">I4s", data[position : position + 8].ljust(8, b"\0"))
        content = data[position + 8 : position + 8 + length]
        check = data[position + 8 + length : position + 12 + length]
        if check != struct.pack(">I", zlib.crc32(kind + content)):
            raise ValueError("the PNG file is damaged or cut off")
        yield kind, content
        if kind == b"IEND":
            return
        position += 12 + length


def _written(chunk: _Chunk) -> bytes:
    kind, content = chunk
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _has_keyword(chunk: _Chunk, keywords: Mapping[str, str]) -> bool:
    kind, content = chunk
    return kind in _READERS and content.partition(b"\0")[0].decode("latin-1") in keywords


def _latin_text(rest: bytes) -> str | None:
    return rest.decode("latin-1")


def _compressed_latin_text(rest: bytes) -> str | None:
    text = _inflated(rest[1:])
    return None if text is None else text.decode("latin-1")


def _international_text(rest: bytes) -> str | None:
    # Compressed or not, the method, the language, the translated keyword, the text.
    text = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    inflated = _inflated(text) if rest[:1] == b"\1" else text
    return None if inflated is None else inflated.decode(errors="replace")


def _inflated(data: bytes) -> bytes | None:
    decoder = zlib.decompressobj()
    try:
        text = decoder.decompress(data, MAX_TEXT_BYTES)
    except zlib.error:
        return None
    return text if decoder.eof else None


_READERS = {b"tEXt": _latin_text, b"zTXt": _compressed_latin_text, b"iTXt": _international_text}
