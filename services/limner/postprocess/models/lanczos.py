"""Lanczos' windowed sinc: resampling that invents nothing. For every picture, depth and scale."""

from __future__ import annotations

from limner.core.card import ModelCard
from limner.core.geometry import Size
from limner.core.picture import Picture
from limner.core.placement import Placement
from limner.core.resample import resize
from limner.engine.store import Store
from limner.runtime.job import Job

CARD = ModelCard(
    name="lanczos",
    task="upscale",
    description="Plain resampling: true to the picture and fast, but soft. Needs no weights.",
    licence="HPND",
    source="Pillow; Duchon, Lanczos Filtering in One and Two Dimensions, 1979",
    engine="pillow",
)


class Lanczos:
    """Resamples by a kernel of three lobes, wider when it reduces, so that nothing aliases."""

    def upscale(self, picture: Picture, size: Size, job: Job, *, memory_bytes: int) -> Picture:
        with job.stage("resample") as step:
            resized = picture.with_pixels(resize(picture.pixels, size, method="lanczos"))
            step(1)
        return resized


def load(placement: Placement, store: Store) -> Lanczos:
    """Return the model; there is nothing to load."""
    return Lanczos()


def placement_for(placement: Placement, bit_depth: int) -> Placement:
    """Every depth runs alike."""
    return placement
