"""LaMa: a network whose Fourier convolutions see the whole picture. Carries textures over large holes."""

from __future__ import annotations

from limner.core.card import ModelCard, WeightFile
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.inpaint.filler import Filler
from limner.inpaint.models._lama import MULTIPLE, NETWORK, PRECISIONS, SMALLEST, open_lama, window

__all__ = ["CARD", "load", "window"]

CARD = ModelCard(
    name="lama",
    task="inpaint",
    description="Continues textures and structures over large holes, from all of the picture. For photographs.",
    licence="Apache-2.0",
    source="https://github.com/advimman/lama (big-lama); Suvorov et al., 2022",
    files=(
        WeightFile(
            "big-lama.pt",
            "https://github.com/Sanster/models/releases/download/add_big_lama/big-lama.pt",
            "md5:e3aa4aaa15225a33ec84f9f4bc47e500",
        ),
    ),
    exports=(NETWORK,),
    tried=False,
    size_multiple=MULTIPLE,
    minimum_side=SMALLEST,
    precisions=PRECISIONS,
    memory_estimate_bytes=600 << 20,
    memory_per_pixel_bytes=1400,
)


def load(placement: Placement, store: Store) -> Filler:
    """Return the filler, with its network opened."""
    return open_lama(CARD, placement, store)
