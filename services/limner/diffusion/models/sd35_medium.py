"""Stable Diffusion 3.5 Medium: 24 layers, the first 13 with a second attention, 2.243 billion parameters."""

from __future__ import annotations

from dataclasses import replace

from limner.core.card import ModelCard
from limner.diffusion.models import _sd3, sd35_large
from limner.diffusion.shape import Part
from limner.diffusion.variant import Variant

SHAPE = _sd3.shape("sd3.5-medium", Part(2_469_663_936, linear=2_241_822_720, block=101_506_944), 1536)

CARD: ModelCard = replace(
    sd35_large.CARD,
    name="sd3.5-medium",
    description="Makes and edits pictures from text, with little memory. 0.25 to 2 megapixels.",
    source="https://huggingface.co/stabilityai/stable-diffusion-3.5-medium",
    memory_estimate_bytes=4 * _sd3.value_count(SHAPE),
    hub="stabilityai/stable-diffusion-3.5-medium",
    hub_bytes=2 * _sd3.value_count(SHAPE),
)

# Steps, guidance and sampler as in CONFIGS of sd3_infer.py (Stability-AI/sd3.5).
VARIANT: Variant = replace(
    sd35_large.VARIANT,
    name=CARD.name,
    max_pixels=2 * _sd3.MEGAPIXEL,
    step_count=50,
    guidance_scale=5.0,
    layer_count=24,
    max_side=384 * _sd3.SIZE_MULTIPLE,
)
