"""Pictures and masks of given sizes for the benchmarks, as PNG bytes. Not for judging quality: only for time."""

from __future__ import annotations

import io

import numpy as np
import skimage.data
from PIL import Image


def photograph(width: int, height: int) -> bytes:
    """Return an RGB photograph of that size as PNG: scikit-image's astronaut (NASA, public domain), enlarged, with some
    grain, since an enlarged picture alone compresses better than photographs do."""
    enlarged = Image.fromarray(skimage.data.astronaut()).resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).normal(0, 2, (height, width, 1))
    pixels = np.clip(np.asarray(enlarged, dtype=np.float32) + grain, 0, 255).astype(np.uint8)
    return png(pixels)


def hole(width: int, height: int, hole_width: int, hole_height: int) -> bytes:
    """Return a mask of that size with one rectangle in its middle as PNG."""
    mask = np.zeros((height, width), dtype=np.uint8)
    top, left = (height - hole_height) // 2, (width - hole_width) // 2
    mask[top : top + hole_height, left : left + hole_width] = 255
    return png(mask)


def png(pixels: np.ndarray) -> bytes:
    """Return (height, width[, 3]) uint8 pixels as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
