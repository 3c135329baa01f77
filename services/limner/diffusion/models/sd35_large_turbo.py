"""Stable Diffusion 3.5 Large Turbo: Large, distilled to four steps without guidance."""

from __future__ import annotations

from dataclasses import replace

from limner.core.card import ModelCard
from limner.diffusion.models import _sd3, sd35_large
from limner.diffusion.models._samplers import SD3_SAMPLERS, first
from limner.diffusion.shape import Shape
from limner.diffusion.variant import Variant

SHAPE: Shape = replace(sd35_large.SHAPE, name="sd3.5-large-turbo")

CARD: ModelCard = replace(
    sd35_large.CARD,
    name="sd3.5-large-turbo",
    description="Makes and edits pictures from text in four steps, at some cost in variety. Up to 1 megapixel.",
    source="https://huggingface.co/stabilityai/stable-diffusion-3.5-large-turbo",
    hub="stabilityai/stable-diffusion-3.5-large-turbo",
)

# Steps and guidance as in CONFIGS of sd3_infer.py (Stability-AI/sd3.5); `turbo` is its Euler on four sigmas.
VARIANT: Variant = replace(
    sd35_large.VARIANT,
    name=CARD.name,
    step_count=4,
    guidance_scale=1.0,
    samplers=first("turbo", SD3_SAMPLERS),
    shift=_sd3.SHIFT,
)
