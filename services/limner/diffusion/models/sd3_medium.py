"""Stable Diffusion 3 Medium: the first of the family, 24 layers, 2.028 billion parameters."""

from __future__ import annotations

from dataclasses import replace

from limner.core.card import ModelCard
from limner.diffusion.models import _sd3, sd35_large, sd35_medium
from limner.diffusion.shape import Part
from limner.diffusion.variant import Variant

SHAPE = _sd3.shape("sd3-medium", Part(2_084_951_104, linear=2_027_126_784, block=84_980_736), 1536)

CARD: ModelCard = replace(
    sd35_large.CARD,
    name="sd3-medium",
    description="Makes and edits pictures from text; the older model of Medium's size. Up to 1 megapixel.",
    source="https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers",
    memory_estimate_bytes=4 * _sd3.value_count(SHAPE),
    hub="stabilityai/stable-diffusion-3-medium-diffusers",
    hub_bytes=2 * _sd3.value_count(SHAPE),
)

# Steps, guidance and sampler as in CONFIGS of sd3_infer.py (Stability-AI/sd3.5); the shift as in the published folder.
VARIANT: Variant = replace(
    sd35_medium.VARIANT,
    name=CARD.name,
    max_pixels=_sd3.MEGAPIXEL,
    max_side=192 * _sd3.SIZE_MULTIPLE,
)
