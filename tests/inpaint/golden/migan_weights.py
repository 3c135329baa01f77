"""The seeded weights of MI-GAN: what its recipe and its test both load. Knows neither network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.inpaint.golden.weights import seeded

CONSTANTS = ("filter_const", "filter.weight")  # never learnt: they stay what the original code makes of them


def migan_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Return an array for every name that isn't a constant.

    Kernels are weaker than He's by what this network's activation makes up for, and noise is as strong as features
    are: features then stay between its clamps from end to end.
    """
    learnt = {name: shape for name, shape in shapes.items() if not name.endswith(CONSTANTS)}
    weights = seeded(learnt)
    for name, values in weights.items():
        if name.endswith("noise_const"):
            weights[name] = values * np.float32((values.shape[1] / 2) ** 0.5)
        elif values.ndim == 4:
            weights[name] = values * np.float32(0.5**0.5)
    return {name: np.asarray(values) for name, values in weights.items()}
