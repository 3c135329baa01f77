"""Weights that keep ZITS' wireframe maps spread over their range and find dozens of lines. Knows numpy only, to be
imported beside the public code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.inpaint.golden.weights import seeded

GAINS = {
    r"conv3\.weight": 0.1,  # what a residual adds; otherwise values grow a thousand times in each hourglass
    r"\.fc\.\d\.0\.weight": 0.1,
    r"heads\.\d\.2\.weight": 0.3,  # the sigmoids' inputs
}
"""By a part of the parameter's name."""

LIKELY = 0.7  # added to the scores' logits
UNLIKELY = -9.2  # added to the junctions' logits, so that half as many are found as there may be


def wireframe_weights(shapes: Mapping[str, tuple[int, ...]], *, few_junctions: bool = False) -> dict[str, NDArray[Any]]:
    """Return seeded weights by name, with junctions everywhere or few of them; not `tspan`, which is a constant."""
    weights = {name: _scaled(name, values) for name, values in seeded(shapes).items() if name != "tspan"}
    weights["fc2.4.bias"] += np.float32(LIKELY)
    if few_junctions:
        weights["backbone.score.1.heads.3.2.bias"][1] += np.float32(UNLIKELY)
    return weights


def _scaled(name: str, values: NDArray[Any]) -> NDArray[Any]:
    gain = next((gain for part, gain in GAINS.items() if re.search(part, name)), 1.0)
    return np.asarray(values * gain, values.dtype)
