"""Pictures in other sizes. Knows no model: what networks need beyond this (multiples, minimum sides) is padding."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.core.geometry import Box, Size
from limner.core.picture import Pixels

Method = Literal["lanczos", "area", "cubic", "linear"]

# All of them are convolutions whose kernel widens when the picture becomes smaller, so that nothing aliases.
_KERNELS = {
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
    "cubic": Image.Resampling.BICUBIC,
    "linear": Image.Resampling.BILINEAR,
}

_REACH = 3  # pixels from its middle that the widest kernel, Lanczos', reaches, where nothing is made smaller


def resize(pixels: Pixels, size: Size, *, method: Method, part: Box | None = None) -> Pixels:
    """Return `pixels`, (height, width, 1 to 4) uint8 or uint16, in another size: clipped, rounded, of the same dtype.

    The second of 2 channels and the fourth of 4 are alpha: colours are weighted by it, so that those of invisible
    pixels don't shine through. `area` is the mean of what a pixel covers, the best there is for making smaller.
    With `part`, a box in the result, only that much of it is made and returned.
    """
    height, width, channels = pixels.shape
    part = part or Box(0, 0, size.width, size.height)
    if size == Size(width, height):
        return pixels[part.slices()].copy()
    scale = (width / size.width, height / size.height)
    source = (
        part.x * scale[0],
        part.y * scale[1],
        min(part.right * scale[0], width),
        min(part.bottom * scale[1], height),
    )

    def resample(image: Image.Image) -> Image.Image:
        return image.resize((part.width, part.height), _KERNELS[method], box=source)

    if pixels.dtype == np.uint8 and channels in (1, 3):
        image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        resized = np.array(_across_then_down(image, Size(part.width, part.height), _KERNELS[method], source))
        return resized.reshape(part.height, part.width, channels)
    maximum = np.iinfo(pixels.dtype).max
    resized = np.empty((part.height, part.width, channels), pixels.dtype)
    alpha = pixels[:, :, -1].astype(np.float32) if channels in (2, 4) else None
    if alpha is None or alpha.min() == alpha.max():
        for channel in range(channels):
            resized[:, :, channel] = _whole(_resample_plane(pixels[:, :, channel], resample), maximum)
        return resized
    new_alpha = np.clip(_resample_plane(alpha, resample), 0, maximum)
    resized[:, :, -1] = _whole(new_alpha, maximum)
    for channel in range(channels - 1):
        weighted = _resample_plane(pixels[:, :, channel] * (alpha / maximum), resample)
        straight = np.divide(weighted * maximum, new_alpha, out=np.zeros_like(weighted), where=new_alpha > 0)
        resized[:, :, channel] = _whole(straight, maximum)
    return resized


def _across_then_down(
    image: Image.Image, size: Size, kernel: Image.Resampling, source: tuple[float, float, float, float]
) -> Image.Image:
    """Resample 8 bits, always in this order: what is clipped between the two depends on it, and Pillow by itself takes
    the order that costs less, which may be another one for a part than for the whole."""
    left, top, right, bottom = source
    reach = ceil(_REACH * max(1.0, (bottom - top) / size.height)) + 1
    first, last = max(0, floor(top) - reach), min(image.height, ceil(bottom) + reach)
    rows = image.crop((0, first, image.width, last))
    across = rows.resize((size.width, rows.height), kernel, box=(left, 0, right, rows.height))
    return across.resize((size.width, size.height), kernel, box=(0, top - first, size.width, bottom - first))


def _resample_plane(plane: NDArray[Any], resample: Callable[[Image.Image], Image.Image]) -> NDArray[np.float32]:
    """Resample (height, width) of any dtype in floats; kernels with negative lobes overshoot."""
    return np.asarray(resample(Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))))


def _whole(plane: NDArray[np.float32], maximum: int) -> NDArray[np.float32]:
    """Clip and round, so that the cast that follows neither wraps nor truncates."""
    return np.rint(np.clip(plane, 0, maximum))


def pad_reflect(pixels: NDArray[Any], size: Size) -> NDArray[Any]:
    """Return (height, width, ...) padded to `size` at the right and bottom with its mirror image, which has no seam.

    The mirror is repeated where the padding is larger than the picture; one pixel is repeated as it is.
    """
    height, width = pixels.shape[:2]
    if size.width < width or size.height < height:
        raise ValueError(f"{width} × {height} cannot be padded to {size.width} × {size.height}")
    if size == Size(width, height):
        return pixels.copy()
    return np.take(np.take(pixels, _mirror(height, size.height), axis=0), _mirror(width, size.width), axis=1)


def _mirror(length: int, wanted: int) -> NDArray[np.intp]:
    """Return indices 0 1 2 3 2 1 0 1 ..., the edge not doubled."""
    if length == 1:
        return np.zeros(wanted, np.intp)
    period = 2 * (length - 1)
    index = np.arange(wanted) % period
    return np.minimum(index, period - index)
