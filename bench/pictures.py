"""Pictures and masks of given sizes for the benchmarks, as PNG bytes. Not for judging quality: only for time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

ASSETS = Path(__file__).parent.parent / "assets"


def photograph(width: int, height: int) -> bytes:
    """Return an RGB photograph of that size as PNG: scikit-image's astronaut (NASA, public domain), enlarged, with some
    grain, since an enlarged picture alone compresses better than photographs do."""
    enlarged = Image.fromarray(skimage.data.astronaut()).resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).normal(0, 2, (height, width, 1))
    pixels = np.clip(np.asarray(enlarged, dtype=np.float32) + grain, 0, 255).astype(np.uint8)
    return png(pixels)


def held_out(side: int) -> NDArray[np.uint8]:
    """Return (side, side, 3) of a photograph that no weights here were made from: the middle of assets/demo.jpg."""
    picture = Image.open(ASSETS / "demo.jpg").convert("RGB")
    least = min(picture.size)
    left, top = (picture.width - least) // 2, (picture.height - least) // 2
    middle = picture.crop((left, top, left + least, top + least))
    return np.asarray(middle.resize((side, side), Image.Resampling.LANCZOS))


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
