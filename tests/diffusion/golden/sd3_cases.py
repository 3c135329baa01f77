"""Small networks of Stability's own code: their sizes, weights and inputs, for the recipe and for the tests. Knows
neither network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.inpaint.golden.weights import pictures, seeded

Array = NDArray[Any]

TRANSFORMER_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
JOINT, POOLED, TOKENS = 96, 64, 9
POSITIONS = 16  # a side; the latents have 6 × 10 patches, off the middle by an odd number
VAE_CHANNELS = 32
CLIP = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 4}
T5 = {"d_ff": 96, "d_model": 64, "num_heads": 2, "num_layers": 2, "vocab_size": 120}
ACTIVATIONS = {"text_encoder": "quick_gelu", "text_encoder_2": "gelu"}


@dataclass(frozen=True)
class Sizes:
    """A transformer, of 64 channels for each layer."""

    depth: int
    dual_attention: tuple[int, ...] = ()
    qk_norm: str | None = "rms"


CASES = {"large": Sizes(2), "medium": Sizes(3, (0, 1)), "sd3_medium": Sizes(2, qk_norm=None)}


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return an array for every name. Positions and queries are strong enough to be seen in the output."""
    found = seeded(shapes)
    for name, values in found.items():
        if name.endswith("pos_embed"):
            found[name] = values * np.float32((values.shape[1] * values.shape[2] / 2) ** 0.5)
        elif name.endswith("qkv.weight"):
            found[name] = values * np.float32(2)
    return found


def inputs() -> dict[str, NDArray[np.float32]]:
    """Return latents (2, 16, 12, 20), timestep (2,), pooled (2, 64), text (2, 9, 96), picture (1, 3, 32, 48)."""
    random = np.random.default_rng(0)
    shapes = {"latents": (2, 16, 12, 20), "pooled": (2, POOLED), "text": (2, TOKENS, JOINT)}
    found = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found["timestep"] = np.array([31.0, 900.0], np.float32)
    found["picture"] = 2 * pictures(1, 32, 48) - 1
    return found


def tokens(pad: int, end: int = 49407) -> NDArray[np.int64]:
    """Return (1, 77): begin, some words, the end, then padding."""
    words = np.random.default_rng(1).integers(1000, 40_000, 7)
    return np.array([[49406, *words, end, *[pad] * (77 - 9)]], np.int64)


def t5_tokens() -> NDArray[np.int64]:
    """Return (1, 20): words, the end, padding."""
    return np.array([[*np.random.default_rng(2).integers(3, 120, 12), 1, *[0] * 7]], np.int64)
