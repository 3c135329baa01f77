"""Stable Diffusion 1.5 for inpainting: nine input channels, one CLIP text encoder."""

from __future__ import annotations

from limner.core.card import ModelCard
from limner.diffusion.models._samplers import LEGACY_SAMPLERS, first
from limner.diffusion.shape import Part, Shape
from limner.diffusion.variant import Variant

SHAPE = Shape(
    "sd1.5-inpaint",
    "sd1",
    Part(859_535_364, linear=270_049_280),
    clip=(Part(123_060_480, linear=84_934_656),),
    t5=None,
    vae=Part(83_653_863, linear=2_097_152),
    width=320,
)

CARD = ModelCard(
    name="sd1.5-inpaint",
    task="edit",
    description="Fills what a mask covers from text, and extends pictures, at about 512 × 512 pixels. Small and fast.",
    licence="CreativeML Open RAIL-M",
    source="https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-inpainting",
    needs_acceptance=True,
    tried=False,
    size_multiple=8,
    minimum_side=256,
    precisions=("fp32", "bf16", "fp16"),
    memory_estimate_bytes=4 * 1_067_000_000,
    engine="torch",
    hub="stable-diffusion-v1-5/stable-diffusion-inpainting",
    hub_bytes=4 * 1_067_000_000,
)

# Steps and guidance are the defaults of StableDiffusionInpaintPipeline, the sampler that of the published folder.
VARIANT = Variant(
    name=CARD.name,
    family="sd1",
    tasks=frozenset(("edit",)),
    width=512,
    height=512,
    size_multiple=8,
    min_pixels=256 * 256,
    max_pixels=1 << 20,
    step_count=50,
    guidance_scale=7.5,
    samplers=first("PNDM", LEGACY_SAMPLERS),
)
