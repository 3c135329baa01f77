"""What a model of this server is: something that fills holes in a few channels of pixels. Knows no strategy, no mask
with soft edges and no alpha: those stay outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from limner.core.card import ModelCard
from limner.core.picture import Pixels
from limner.core.placement import Placement
from limner.engine.store import Store


@dataclass(frozen=True)
class Options:
    """What a request can ask of a model; each one takes what concerns it."""

    radius: float = 4.0  # how far the classic algorithms look around a pixel, in pixels, 1 to 100
    seed: int = 0  # of models that draw random numbers, in [0, 2**64)


@dataclass(frozen=True)
class Window:
    """How much a model works on in one step, in pixels. A step cannot be cancelled, so it should take a few seconds at
    most, and what is larger is done in several.

    Window(512, 256)    # fills 512 × 512 pixels at a time and sees 256 around them
    """

    block: int
    margin: int
    parts: int = 1  # how many steps of progress one such step is told in, for models that tell how far they are

    @property
    def side(self) -> int:
        """The longest side of what is done in one step."""
        return self.block + 2 * self.margin


class Filler(Protocol):
    """A loaded model. It keeps nothing from one call to the next."""

    def fill(
        self, pixels: Pixels, hole: NDArray[np.bool_], options: Options, progress: Callable[[float], None]
    ) -> Pixels:
        """Return `pixels` with the hole filled.

        `pixels` is (height, width, 1 or 3) uint8 or uint16 over its whole range, of any size from 1×1, and is not
        written to; `hole` is (height, width) bool with at least one pixel of either kind. The result is of the same
        shape and dtype. Values under the hole don't matter, nor do those outside it in the result.
        Models that work longer than a second or two call `progress` with the share of the work done, in [0, 1]; it
        raises once the call is over.
        """
        ...


class FillerSource(Protocol):
    """A model's file."""

    CARD: ModelCard

    def window(self, options: Options) -> Window:
        """Return how much of a picture the model works on in one step. Known without loading it."""
        ...

    def load(self, placement: Placement, store: Store) -> Filler:
        """Return the model, ready to run."""
        ...
