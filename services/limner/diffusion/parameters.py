"""What is asked of a diffusion model, with every default resolved. Knows no protocol, no torch and no model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SkipLayers:
    """Skip-layer guidance: away from what the model predicts without some of its layers (Stability AI, sd3.5, 2024)."""

    scale: float = 2.5
    layers: tuple[int, ...] = (7, 8, 9)
    start: float = 0.01  # shares of the steps between which it acts
    stop: float = 0.2


@dataclass(frozen=True)
class StepCache:
    """Steps that are predicted from earlier ones (TaylorSeer, Liu et al., 2025)."""

    interval: int = 2  # one step of so many is computed
    order: int = 1  # of the Taylor polynomial
    warm_up: int = 3  # steps at the beginning that are all computed


@dataclass(frozen=True)
class LoraUse:
    """A LoRA by its name, and how strongly it is applied."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True)
class Parameters:
    """How the pictures of one call are made. Image i of the call has the seed `seed + i`."""

    prompt: str
    negative_prompt: str
    width: int  # pixels that the model works at, a multiple of the variant's
    height: int
    step_count: int
    guidance_scale: float  # 1: no guidance
    sampler: str
    shift: float | None  # of the schedule; None for families without
    text_length: int  # tokens that the long text encoder reads
    seed: int
    image_count: int = 1
    strength: float = 1.0  # 1: from noise alone; else the share of the steps that are done on a given picture
    truncate_prompt: bool = False
    skip_layers: SkipLayers | None = None
    step_cache: StepCache | None = None
    loras: tuple[LoraUse, ...] = ()

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is predicted too, which doubles the work."""
        return self.guidance_scale > 1
