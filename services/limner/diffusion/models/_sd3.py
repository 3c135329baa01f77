"""What the cards of the SD3 family have in common."""

from __future__ import annotations

from limner.diffusion.shape import Part, Shape

LICENCE = "Stability AI Community License"  # free below a yearly revenue of one million US dollars
PRECISIONS = ("fp32", "bf16", "fp16")
SIZE_MULTIPLE = 16  # the VAE reduces by 8, and patches are of two
SHIFT = 3.0
TEXT_LENGTH = 256  # tokens of T5, as StableDiffusion3Pipeline's default
MAX_TEXT_LENGTH = 512
MEGAPIXEL = 1 << 20
CLIP_L = Part(123_650_304, linear=85_524_480, block=7_087_872)
CLIP_G = Part(694_659_840, linear=630_784_000, block=19_677_440)
T5_XXL = Part(4_762_310_656, linear=4_630_511_616, block=192_948_224)
VAE = Part(83_819_683, linear=2_097_152)


def shape(name: str, transformer: Part, width: int) -> Shape:
    """Return the networks of a model of the family; the others are the same for all."""
    return Shape(name, "sd3", transformer, (CLIP_L, CLIP_G), T5_XXL, VAE, width)


def value_count(model: Shape) -> int:
    """Return how many values all networks together have: the published files have two bytes for each."""
    parts = (model.denoiser, *model.clip, model.t5 or Part(0), model.vae)
    return sum(part.values for part in parts)
