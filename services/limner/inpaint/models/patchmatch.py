"""PatchMatch: composes the hole of patches that occur elsewhere in the picture, from coarse to fine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from limner.core.card import ModelCard
from limner.core.picture import Pixels
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.inpaint.depth import fill_in_eight_bits
from limner.inpaint.filler import Filler, Options, Part, Window
from limner.inpaint.worker import PatchMatchProcess

CARD = ModelCard(
    name="patchmatch",
    task="inpaint",
    description="Composes the fill of patches from elsewhere in the picture, so that textures go on. For objects.",
    licence="MIT",
    source="PyPatchMatch; Barnes et al., PatchMatch, 2009, and Wexler et al., Space-Time Completion of Video, 2007",
    engine="pypatchmatch",
)

PATCH_RADIUS = 4  # patches of 9 × 9; docs/inpainting.md compares


def window(options: Options) -> Window:
    """Return what fits a RESIZE of the default size. Large holes in it take long, but can be cancelled at any time."""
    return Window(768, 256, parts=20)


def load(placement: Placement, store: Store) -> Filler:
    """Return the filler; its process starts with the first call."""
    return PatchMatch(PATCH_RADIUS)


class PatchMatch:
    """PatchMatch(4) compares patches of 9 × 9 pixels."""

    def __init__(self, patch_radius: int) -> None:
        self._patch_radius = patch_radius
        self._process = PatchMatchProcess()

    def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Pixels]:
        return [self._filled(part, progress) for part in parts]

    def _filled(self, part: Part, progress: Callable[[float], None]) -> Pixels:
        def fill_eight(eight: NDArray[np.uint8]) -> NDArray[np.uint8]:
            rgb = eight if eight.shape[2] == 3 else np.repeat(eight, 3, axis=2)
            radius, seed = self._patch_radius, part.options.seed
            filled = self._process.inpaint(rgb, part.hole, patch_radius=radius, seed=seed, progress=progress)
            return filled[:, :, : eight.shape[2]]  # of grey, the channels stay alike

        return fill_in_eight_bits(fill_eight, part.pixels, part.hole)
