"""Synthetic scenes whose masks are known."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.core.picture import Picture


@dataclass(frozen=True)
class KnownScene:
    """A picture, the mask of its object, and a click well inside."""

    picture: Picture
    mask: NDArray  # (h, w) bool
    click: tuple[float, float]


def make_scene(kind: str, width: int = 320, height: int = 240) -> KnownScene:
    """`disc`: an orange disc on noisy green; `striped`: a striped star on grey; `dull`: a disc little brighter than
    the ramp it lies on; `framed`: a rectangle that touches the frame."""
    noise = np.random.Generator(np.random.PCG64(5)).normal(0, 6, (height, width, 3))
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float64)
    cx, cy = width * 0.55, height * 0.5
    u, v = (xx - cx) / height, (yy - cy) / height
    if kind == "disc":
        ground, thing, mask = (60, 120, 50), (230, 130, 30), np.hypot(u, v) < 0.25
    elif kind == "striped":
        stripes = ((xx + yy) // 9 % 2)[..., None]
        thing = stripes * (200, 40, 40) + (1 - stripes) * (40, 40, 160)
        ground, mask = (150, 150, 150), np.hypot(u, v) < 0.25 + 0.08 * np.sin(5 * np.arctan2(v, u))
    elif kind == "dull":
        ground = (90 + 50 * xx / width)[..., None] * (1, 1, 1)
        thing, mask = (175, 170, 160), np.hypot(u, v) < 0.22
    else:
        ground, thing = (190, 200, 210), (50, 60, 140)
        mask = (np.abs(u) < 0.2) & (v > -0.2)
    sharp = np.where(mask[..., None], thing, ground).astype(np.float64)
    pixels = np.clip(cv2.GaussianBlur(sharp, (0, 0), 0.7) + noise, 0, 255).astype(np.uint8)
    return KnownScene(Picture(pixels), mask, (float(int(cx)), float(int(cy + 0.05 * height))))


def overlap(mask: NDArray, truth: NDArray) -> float:
    """Intersection over union."""
    found = mask > 127
    return float((found & truth).sum() / max(1, (found | truth).sum()))
