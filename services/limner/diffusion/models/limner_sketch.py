"""limner-sketch: a small model of SD3.5's architecture that ships with Limner, trained by `training/sketch` on pictures
of things with captions. Its text encoders are two small CLIPs; it has no T5."""

from __future__ import annotations

from limner.core.card import ModelCard
from limner.diffusion.digests import combined
from limner.diffusion.models import _sd3
from limner.diffusion.models._samplers import SD3_SAMPLERS
from limner.diffusion.shape import Part, Shape
from limner.diffusion.variant import Variant
from limner.engine.shipped import shipped

SHAPE = Shape(
    "limner-sketch",
    "sd3",
    Part(13_908_032, linear=13_778_944, block=2_367_232),
    clip=(Part(617_984, linear=212_992, block=198_272),) * 2,
    t5=None,
    vae=Part(2_634_419),
    width=256,
    vae_width=16,
)

_FILES = shipped("limner-sketch")

CARD = ModelCard(
    name="limner-sketch",
    task="generate",
    description="A small model that ships with Limner: simple pictures of single things, at 128 × 128 pixels.",
    licence="Apache-2.0",
    source="docs/models/limner-sketch.md; the method is Esser et al., 2024",
    files=_FILES,
    digest=combined([file.digest for file in _FILES if file.name.endswith(".safetensors")]),
    size_multiple=_sd3.SIZE_MULTIPLE,
    minimum_side=96,
    precisions=_sd3.PRECISIONS,
    memory_estimate_bytes=4 * _sd3.value_count(SHAPE),
    engine="torch",
)

# It was trained at 128 × 128 alone. Of the zeros in the place of T5's tokens it takes any number, and few cost least.
VARIANT = Variant(
    name=CARD.name,
    family="sd3",
    tasks=frozenset(("generate", "edit")),
    width=128,
    height=128,
    size_multiple=_sd3.SIZE_MULTIPLE,
    min_pixels=96 * 96,
    max_pixels=128 * 128,
    step_count=24,
    guidance_scale=4.0,
    samplers=SD3_SAMPLERS,
    shift=1.5,
    text_length=16,
    max_text_length=_sd3.TEXT_LENGTH,
    layer_count=6,
    max_side=256,
)
