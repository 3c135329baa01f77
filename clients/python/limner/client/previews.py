"""Previews on the terminal: which way it can show pictures, and the text that draws one at the cursor.

Terminals that speak the graphics protocol of kitty or of iTerm2 get the picture itself. Others with 24-bit colours get
half blocks, two pixels a character, for which Pillow reads the picture.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from limner.client import headers, png

if TYPE_CHECKING:
    from PIL.Image import Image

Way = Literal["kitty", "iterm", "blocks"]
ROWS = 16  # of the terminal, for each preview
_CELL_ASPECT = 2.0  # a character is about twice as high as wide
_KITTY_PIECE = 4096  # bytes of base64 that one command of the protocol holds


def way_of(environment: Mapping[str, str], color_system: str | None) -> Way | None:
    """How a terminal shows pictures, by its environment and its colours (rich's `Console.color_system`); None: not."""
    program = environment.get("TERM_PROGRAM", "")
    multiplexed = "TMUX" in environment or environment.get("TERM", "").startswith(("screen", "tmux"))
    if not multiplexed:  # these pass on text, not pictures
        if program == "ghostty" or "KITTY_WINDOW_ID" in environment or environment.get("TERM") == "xterm-kitty":
            return "kitty"
        if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
            return "iterm"
    return "blocks" if color_system == "truecolor" else None


def paint(way: Way, data: bytes, *, columns: int, rows: int, number: int) -> str | None:
    """The text that draws an image file over so many characters, from the cursor to the right and down; None where
    only Pillow could read it and isn't there, or can't. A picture takes the place of the earlier one of its `number`.
    """
    if way == "iterm":
        head = f"inline=1;size={len(data)};width={columns};height={rows};preserveAspectRatio=1"
        return f"\x1b]1337;File={head}:{base64.b64encode(data).decode()}\a"
    if way == "kitty":
        file = data if data.startswith(png.SIGNATURE) else _as_png(data)
        return None if file is None else _kitty(file, columns, rows, number)
    return _blocks(data, columns, rows)


def columns_of(data: bytes, rows: int) -> int:
    """How many characters wide a picture is that is `rows` high."""
    width, height = headers.size_of(data) or (1, 1)
    return max(1, round(rows * _CELL_ASPECT * width / height))


class Screen:
    """The place above a command's bars where previews are drawn, side by side."""

    def __init__(self, console: Console, way: Way, lines_below: int) -> None:
        self._console = console
        self._way = way
        self._lines_below = lines_below
        self._rows = max(1, min(ROWS, console.height - lines_below - 1))
        self._reserved = False

    def draw(self, number: int, data: bytes) -> bool:
        """Draws a picture in the place of its number; False if nothing here can read it."""
        rows, columns = self._rows, columns_of(data, self._rows)
        left = number * (columns + 1)
        if number and left + columns >= self._console.width:
            return True  # no room beside the others
        if columns > self._console.width:
            rows, columns = max(1, rows * self._console.width // columns), self._console.width
        text = paint(self._way, data, columns=columns, rows=rows, number=number)
        if text is None:
            return False
        if not self._reserved:
            self._console.print("\n" * (self._rows - 1))
            self._reserved = True
        up = self._rows + self._lines_below - 1
        # Save the cursor, go to the place, draw, and go back.
        self._console.file.write(f"\x1b7\x1b[{up}A\x1b[{left + 1}G{text}\x1b8")
        self._console.file.flush()
        return True


def _kitty(file: bytes, columns: int, rows: int, number: int) -> str:
    text = base64.b64encode(file).decode()
    pieces = [text[i : i + _KITTY_PIECE] for i in range(0, len(text), _KITTY_PIECE)]
    # q=2: the terminal answers nothing, which the shell would take for typing; C=1: the cursor stays.
    head = f"a=T,f=100,q=2,C=1,i={number + 1},p=1,c={columns},r={rows},"
    commands = [
        f"\x1b_G{'' if i else head}m={int(i < len(pieces) - 1)};{piece}\x1b\\" for i, piece in enumerate(pieces)
    ]
    return "".join(commands)


def _blocks(data: bytes, columns: int, rows: int) -> str | None:
    image = _opened(data)
    if image is None:
        return None
    pixels = image.resize((columns, 2 * rows)).tobytes()
    lines = []
    for y in range(0, 2 * rows, 2):
        line = []
        for x in range(columns):
            upper, lower = (3 * ((y + below) * columns + x) for below in (0, 1))
            line.append(
                f"\x1b[38;2;{pixels[upper]};{pixels[upper + 1]};{pixels[upper + 2]}m"
                f"\x1b[48;2;{pixels[lower]};{pixels[lower + 1]};{pixels[lower + 2]}m▀"
            )
        lines.append("".join(line) + "\x1b[0m")
    return f"\x1b[B\x1b[{columns}D".join(lines)


def _as_png(data: bytes) -> bytes | None:
    image = _opened(data)
    if image is None:
        return None
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _opened(data: bytes) -> Image | None:
    """The picture in RGB, if Pillow is there and can read it."""
    if not _has_pillow():
        return None
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except OSError:
        return None


def _has_pillow() -> bool:
    return find_spec("PIL") is not None
