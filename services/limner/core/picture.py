"""What a picture is: pixels with what is known about them. Knows no file format: `limner.core.codec` reads and writes.

Pixels are (height, width, channels) uint8 or uint16, C-contiguous; 1 channel is grey, 2 grey and alpha, 3 RGB, 4 RGB
and alpha. Alpha is straight (not premultiplied), 0 transparent to the maximum opaque.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.core.geometry import Size

Pixels = NDArray[Any]  # uint8 or uint16 (height, width, channels)

# v / 257, rounded: what 16 bits are in 8. A table is faster than arithmetic in 32 bits, and needs no memory for it.
_EIGHT_OF_SIXTEEN: NDArray[np.uint8] = ((np.arange(65536) + 128) // 257).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels with profile, EXIF and origin. Nobody writes into the pixels of a picture: make a new one.

    Picture(np.zeros((480, 640, 3), np.uint8))                       # black, 640 wide, 480 high
    Picture(np.full((1, 1, 2), 65535, np.uint16))                    # one white opaque pixel of 16 bits
    """

    pixels: Pixels
    icc_profile: bytes | None = None  # what the pixels' values mean; None: sRGB
    exif: bytes | None = None  # from its TIFF header on; orientation 1, as it was applied
    source_format: str = "png"  # lower case; what a result is encoded in unless asked otherwise

    def __post_init__(self) -> None:
        """Raise ValueError unless the pixels are as the module says: a fault of the caller, not of the input."""
        pixels = self.pixels
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or min(pixels.shape) < 1:
            raise ValueError(f"pixels of shape {pixels.shape}; (height, width, 1 to 4) is wanted")
        dtype = pixels.dtype.newbyteorder("=")
        if dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels of {dtype}; uint8 or uint16 is wanted")
        if not pixels.flags.c_contiguous or not pixels.dtype.isnative:
            object.__setattr__(self, "pixels", np.ascontiguousarray(pixels, dtype=dtype))

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels.shape[0])

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return Size(self.width, self.height)

    @property
    def channels(self) -> int:
        """Channels a pixel, alpha included: 1 to 4."""
        return int(self.pixels.shape[2])

    @property
    def bit_depth(self) -> int:
        """Bits a channel: 8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.channels in (2, 4)

    @property
    def maximum(self) -> int:
        """White, and opaque: 255 or 65535."""
        return 255 if self.bit_depth == 8 else 65535

    def colour(self) -> Pixels:
        """Return (height, width, 1 or 3) of the picture's dtype, without alpha. A view where there is none."""
        return np.ascontiguousarray(self.pixels[:, :, :-1]) if self.has_alpha else self.pixels

    def alpha(self) -> Pixels | None:
        """Return (height, width) of the picture's dtype, or None if the picture has no alpha."""
        return np.ascontiguousarray(self.pixels[:, :, -1]) if self.has_alpha else None

    def rgb8(self) -> NDArray[np.uint8]:
        """Return (height, width, 3) uint8 in [0, 255]: 16 bits rounded, grey repeated, alpha left out."""
        colour = eight_bits(self.colour())
        return colour if colour.shape[2] == 3 else np.repeat(colour, 3, axis=2)

    def with_pixels(self, pixels: Pixels) -> Picture:
        """Return these pixels with this picture's metadata. A profile of grey isn't kept for RGB, nor the reverse."""
        icc_profile = self.icc_profile if (pixels.shape[2] < 3) == (self.channels < 3) else None
        return replace(self, pixels=pixels, icc_profile=icc_profile)

    def with_bit_depth(self, bits: int) -> Picture:
        """Return the picture in 8 or 16 bits: times 257 up, rounded down. There and back is the same picture."""
        if bits == self.bit_depth:
            return self
        return replace(self, pixels=eight_bits(self.pixels) if bits == 8 else sixteen_bits(self.pixels))


def eight_bits(pixels: Pixels) -> NDArray[np.uint8]:
    """Return uint8 of uint8 or uint16: v / 257, rounded."""
    return pixels if pixels.dtype == np.uint8 else _EIGHT_OF_SIXTEEN[pixels]


def sixteen_bits(pixels: Pixels) -> NDArray[np.uint16]:
    """Return uint16 of uint8 or uint16: v * 257, so that white stays white."""
    return pixels if pixels.dtype == np.uint16 else np.multiply(pixels, 257, dtype=np.uint16)
