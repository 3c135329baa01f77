"""Stable Diffusion 3.5 Large: 38 layers, 8.057 billion parameters, pictures of up to one megapixel."""

from __future__ import annotations

from limner.core.card import ModelCard
from limner.diffusion.models import _sd3
from limner.diffusion.models._samplers import SD3_SAMPLERS, first
from limner.diffusion.shape import Part
from limner.diffusion.variant import Variant

SHAPE = _sd3.shape("sd3.5-large", Part(8_146_280_768, linear=8_053_694_464, block=212_999_680), 2432)

CARD = ModelCard(
    name="sd3.5-large",
    task="generate",
    description="Makes and edits pictures from text, the best of the family and the slowest. Up to 1 megapixel.",
    licence=_sd3.LICENCE,
    source="https://huggingface.co/stabilityai/stable-diffusion-3.5-large",
    needs_acceptance=True,
    tried=False,
    size_multiple=_sd3.SIZE_MULTIPLE,
    minimum_side=512,
    precisions=_sd3.PRECISIONS,
    memory_estimate_bytes=4 * _sd3.value_count(SHAPE),
    engine="torch",
    hub="stabilityai/stable-diffusion-3.5-large",
    hub_bytes=2 * _sd3.value_count(SHAPE),
)

# Steps, guidance and sampler as in CONFIGS of sd3_infer.py (Stability-AI/sd3.5).
VARIANT = Variant(
    name=CARD.name,
    family="sd3",
    tasks=frozenset(("generate", "edit")),
    width=1024,
    height=1024,
    size_multiple=_sd3.SIZE_MULTIPLE,
    min_pixels=_sd3.MEGAPIXEL // 4,
    max_pixels=_sd3.MEGAPIXEL,
    step_count=40,
    guidance_scale=4.5,
    samplers=first("dpmpp-2m", SD3_SAMPLERS),
    shift=_sd3.SHIFT,
    text_length=_sd3.TEXT_LENGTH,
    max_text_length=_sd3.MAX_TEXT_LENGTH,
    layer_count=38,
    max_side=192 * _sd3.SIZE_MULTIPLE,
)
