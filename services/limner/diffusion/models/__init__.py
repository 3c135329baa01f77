"""The models that Limner knows, by the names that requests use. Knows no torch: what is here are facts."""

from typing import Protocol

from limner.core.card import ModelCard
from limner.diffusion.models import (
    limner_sketch,
    sd3_medium,
    sd15_inpaint,
    sd35_large,
    sd35_large_turbo,
    sd35_medium,
    sdxl_inpaint,
)
from limner.diffusion.shape import Shape
from limner.diffusion.variant import Variant


class Known(Protocol):
    """What a model's file offers."""

    CARD: ModelCard
    VARIANT: Variant
    SHAPE: Shape


MODELS: dict[str, Known] = {
    "sd3.5-medium": sd35_medium,
    "sd3.5-large": sd35_large,
    "sd3.5-large-turbo": sd35_large_turbo,
    "sd3-medium": sd3_medium,
    "sdxl-inpaint": sdxl_inpaint,
    "sd1.5-inpaint": sd15_inpaint,
    "limner-sketch": limner_sketch,
}
