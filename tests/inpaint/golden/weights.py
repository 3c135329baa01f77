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
