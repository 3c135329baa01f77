"""What a model of this server is: something that fills holes in a few channels of pixels. Knows no strategy, no mask
with soft edges and no alpha: those stay outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from limner.core.card import ModelCard
from limner.core.geometry import Size
from limner.core.picture import Pixels
from limner.core.placement import Placement
from limner.engine.store import Store


@dataclass(frozen=True)
class Options:
    """What a request can ask of a model; each one takes what concerns it."""

    radius: float = 4.0  # how far the classic algorithms look around a pixel, in pixels, 1 to 100
    seed: int = 0  # of models that draw random numbers, in [0, 2**64)
    structure: bool = True  # of ZITS: edges and lines are drawn on through the hole before it is filled


@dataclass(frozen=True)
class Part:
    """What a model fills in one step: pixels, the hole in them, and what the request asks of the model."""

    pixels: Pixels  # (height, width, 1 or 3) uint8 or uint16 over its whole range, of any size from 1×1
    hole: NDArray[np.bool_]  # (height, width), with at least one pixel of either kind
    options: Options


@dataclass(frozen=True)
class Window:
    """How much a model works on in one step, in pixels. A step may not be cancellable, so it should take a few seconds
    at most, and what is larger is done in several.

    Window(512, 256)    # fills 512 × 512 pixels at a time and sees 256 around them
    Window(512, 256, context=3.0, least=256, step=64, most_at_once=4)    # a network of any size
    Window(256, 128, context=3.0, least=512, step=512)    # a network that takes 512 × 512 and nothing else
    """

    block: int
    margin: int
    parts: int = 1  # how many steps of progress one such step is told in, for models that tell how far they are
    context: float = 0.0  # of networks: they see at least so many times a hole's side; 0: the margin around it counts
    least: int = 1  # neighbourhoods are at least this large, where the picture is
    step: int = 1  # neighbourhoods' sides are multiples of this, where the picture is that large: many are of one shape
    most_at_once: int = 1  # parts of one shape in one run
    detail: bool = True  # whether fills made at a reduced size get detail from elsewhere in the picture
    square: bool = False  # whether the model completes each part to a square, and so sees more than the part

    @property
    def side(self) -> int:
        """The longest side of what is done in one step."""
        return self.block + 2 * self.margin

    @property
    def stride(self) -> int:
        """The longest side of what is filled in one step, where there are several: each has its context too."""
        return min(self.block, int(self.side / self.context)) if self.context else self.block

    def seen(self, part: Size) -> int:
        """Return how many pixels the model sees of a part, which it fills up to `least`, or to a square."""
        width, height = max(part.width, self.least), max(part.height, self.least)
        return max(width, height) ** 2 if self.square else width * height


class Filler(Protocol):
    """A loaded model. It keeps nothing from one call to the next."""

    def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Pixels]:
        """Return the parts' pixels with their holes filled, in order.

        The parts are of one shape, at most `most_at_once` of the model's window, and are not written to; they may come
        from several calls. Each result has its part's shape and dtype. Values under the hole don't matter, nor do those
        outside it in the result; a part's fill does not depend on what it is filled together with.
        Models that work longer than a second or two call `progress` with the share of the work done, in [0, 1]; it
        raises once every call in the run is over.
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
