"""Stable Diffusion XL for inpainting: nine input channels, two CLIP text encoders."""

from __future__ import annotations

from limner.core.card import ModelCard
from limner.diffusion.models._samplers import LEGACY_SAMPLERS, first
from limner.diffusion.shape import Part, Shape
from limner.diffusion.variant import Variant

SHAPE = Shape(
    "sdxl-inpaint",
    "sdxl",
    Part(2_567_478_084, linear=2_232_647_680),
    clip=(Part(123_060_480, linear=84_934_656), Part(694_659_840, linear=630_784_000, block=19_677_440)),
    t5=None,
    vae=Part(83_653_863, linear=2_097_152),
    width=320,
)

CARD = ModelCard(
    name="sdxl-inpaint",
    task="edit",
    description="Fills what a mask covers from text, and extends pictures, at about 1 megapixel.",
    licence="CreativeML Open RAIL++-M",
    source="https://huggingface.co/diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
    needs_acceptance=True,
    tried=False,
    size_multiple=8,
    minimum_side=512,
    precisions=("fp32", "bf16", "fp16"),
    memory_estimate_bytes=4 * 3_470_000_000,
    engine="torch",
    hub="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
    hub_bytes=4 * 3_470_000_000,
)

# Steps and guidance are the defaults of StableDiffusionXLInpaintPipeline, the sampler that of the published folder.
VARIANT = Variant(
    name=CARD.name,
    family="sdxl",
    tasks=frozenset(("edit",)),
    width=1024,
    height=1024,
    size_multiple=8,
    min_pixels=512 * 512,
    max_pixels=2 << 20,
    step_count=50,
    guidance_scale=7.5,
    samplers=first("Euler", LEGACY_SAMPLERS),
)
