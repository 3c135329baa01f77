"""Weights that keep LaMa's outputs spread over their range. Knows numpy only, to be imported beside the public code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.inpaint.golden.weights import seeded

GAINS = {
    "conv2.bn_l.weight": 0.2,  # what a block adds; otherwise values would quadruple in each of the 18
    "conv2.bn_g.weight": 0.2,
    "bn_l.weight": 0.7,  # two convolutions are added before
    "bn_g.weight": 0.7,
    "model.34.weight": 0.1,  # the sigmoid's input
}
"""By a part of the parameter's name; the first that fits counts."""


def lama_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Return seeded weights by name."""
    return {name: _scaled(name, values) for name, values in seeded(shapes).items()}


def _scaled(name: str, values: NDArray[Any]) -> NDArray[Any]:
    gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
    return np.asarray(values * gain, values.dtype)
