"""What a model that enlarges pictures is to this server."""

from __future__ import annotations

from typing import Protocol

from limner.core.card import ModelCard
from limner.core.geometry import Size
from limner.core.picture import Picture
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.runtime.job import Job


class Upscaler(Protocol):
    """A loaded model."""

    def upscale(self, picture: Picture, size: Size, job: Job, *, memory_bytes: int) -> Picture:
        """Return `picture` in `size`, of the same channels, depth and metadata.

        It checks the job and reports at every tile, and takes about `memory_bytes` at most beside the result."""
        ...


class UpscalerSource(Protocol):
    """A model's file, or an object in it, as `limner.engine.catalog.ModelSource` wants it."""

    CARD: ModelCard

    def load(self, placement: Placement, store: Store) -> Upscaler: ...

    def placement_for(self, placement: Placement, bit_depth: int) -> Placement:
        """Return where, and in what precision, a picture of 8 or 16 bits runs where the model runs at `placement`."""
        ...
