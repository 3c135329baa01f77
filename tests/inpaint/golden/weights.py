"""Weights made of nothing but a seed, a parameter's name and its shape: what the original code and ours are both given.

Knows no network and no torch, so that a recipe can use it beside any public code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray


def seeded(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return an array for every name: float32, int64 for counters.

    Matrices and kernels keep the variance of what goes through them (He et al., 2015), norms stay near one, biases
    near zero, so that deep networks neither vanish nor overflow.
    """
    return {name: _values(name, tuple(shape), seed) for name, shape in shapes.items()}


def pictures(count: int, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Return (count, 3, height, width) in [0, 1], smooth as photographs are: eight waves a channel, each up to six
    times as long as the picture."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    turns = random.uniform(-6, 6, (2, count, 3, 8, 1, 1))
    waves = np.cos(2 * np.pi * (turns[0] * y + turns[1] * x + random.uniform(0, 1, (count, 3, 8, 1, 1)))).sum(2)
    return np.clip(0.5 + waves / 8, 0, 1).astype(np.float32)


def holes(count: int, height: int, width: int) -> NDArray[np.float32]:
    """Return (count, 1, height, width) of 0 and 1: a rectangle off the middle, a little further right in each."""
    masks = np.zeros((count, 1, height, width), np.float32)
    for index, mask in enumerate(masks):
        left = width // 4 + index
        mask[:, height // 3 : height * 2 // 3, left : left + width * 3 // 8] = 1
    return masks


def _values(name: str, shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    random = np.random.Generator(np.random.Philox(key=key))
    if name.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) >= 2:
        return (random.standard_normal(shape, np.float32) * (2 / prod(shape[1:])) ** 0.5).astype(np.float32)
    if name.endswith("weight"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.1 * random.standard_normal(shape, np.float32)).astype(np.float32)
