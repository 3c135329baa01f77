"""What a kind of diffusion model takes, and its defaults: facts that requests are checked against. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["sd3", "sdxl", "sd1"]
Task = Literal["generate", "edit"]


@dataclass(frozen=True)
class Variant:
    """Facts of a model: SD3.5 Medium, say, or a folder of somebody's own, found by its configuration."""

    name: str  # `sd3.5-medium`; what cards and messages call it
    family: Family
    tasks: frozenset[Task]  # `edit` is image-to-image, inpainting and outpainting
    width: int  # the usual size
    height: int
    size_multiple: int
    min_pixels: int  # of width times height
    max_pixels: int
    step_count: int
    guidance_scale: float
    samplers: tuple[str, ...]  # the first is the default
    shift: float | None = None  # of the flow-matching schedule; None for other families
    text_length: int = 77  # tokens of the longest text encoder, by default
    max_text_length: int = 77
    layer_count: int = 0  # of the transformer, for skip-layer guidance; 0: that can't be asked for
    max_side: int = 0  # in pixels, where positions are limited; 0: no limit of its own

    @property
    def sampler(self) -> str:
        """The default sampler."""
        return self.samplers[0]
