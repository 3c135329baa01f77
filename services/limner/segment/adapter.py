"""What a model that segments looks like to the server, and what it is asked.

A model has two halves: `encode` looks at the picture, once; `decode` answers a prompt from what `encode` left, and is
quick. SAM-family networks are cut the same way. Between the halves stands an embedding: the server may keep it in a
cache, and may throw it away at any time, as the same picture always gives the same embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from limner.core.card import ModelCard
from limner.core.geometry import Box, Size
from limner.core.mask import Mask
from limner.core.picture import Picture
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.runtime.job import Job


def no_points() -> NDArray[np.float64]:
    """Return (0, 2): no clicks."""
    return np.zeros((0, 2))


@dataclass(frozen=True, eq=False)
class Prompt:
    """Prompt(positive=np.array([[320.0, 200.0]])); at least one positive click or one box, all inside the picture."""

    positive: NDArray[np.float64] = field(
        default_factory=no_points
    )  # (p, 2) x and y on the object, in pixels of the picture
    negative: NDArray[np.float64] = field(default_factory=no_points)  # (q, 2) x and y off it
    boxes: tuple[Box, ...] = ()  # around objects; the mask is the union of what they hold


@dataclass(frozen=True, eq=False)
class Found:
    """An answer."""

    mask: Mask  # (height, width) uint8 of the picture's size, 255 on the object, 0 off it; may be all 0
    score: float | None  # how sure, 0 to 1


class Embedding(Protocol):
    """What `encode` leaves: only the model knows what is in it."""

    @property
    def size_bytes(self) -> int:
        """How much memory it takes."""


class Segmenter(Protocol):
    """A loaded model of task `segment`. Keeps no state of a picture or a request."""

    def encode(self, picture: Picture, job: Job) -> Embedding:
        """Look at the picture."""

    def decode(self, embedding: Embedding, size: Size, prompt: Prompt, job: Job) -> Found:
        """Answer a prompt about the picture, of `size`, that the embedding was made from."""


class BackgroundRemover(Protocol):
    """A loaded model of task `remove-background`. Keeps no state of a picture or a request."""

    def foreground(self, picture: Picture, job: Job) -> Mask:
        """Return (height, width) uint8, 0 background to 255 foreground, soft at edges."""


class SegmenterSource(Protocol):
    """A model's file."""

    CARD: ModelCard

    def load(self, placement: Placement, store: Store) -> Segmenter | BackgroundRemover:
        """Return the model ready to run."""
