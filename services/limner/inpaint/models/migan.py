"""MI-GAN: a network small enough for phones, which takes 512 × 512 pixels and nothing else."""

from __future__ import annotations

from limner.core.card import ModelCard, WeightFile
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.inpaint.filler import Filler
from limner.inpaint.models._square import NETWORK, PRECISIONS, SIDE, open_square, window

__all__ = ["CARD", "load", "window"]

CARD = ModelCard(
    name="migan",
    task="inpaint",
    description="A small network: the least memory of all networks here. For objects of moderate size.",
    licence="MIT",
    source="https://github.com/Picsart-AI-Research/MI-GAN; Sargsyan et al., MI-GAN, 2023",
    files=(
        WeightFile(
            "migan_traced.pt",
            "https://github.com/Sanster/models/releases/download/migan/migan_traced.pt",
            "md5:76eb3b1a71c400ee3290524f7a11b89c",
        ),
    ),
    exports=(NETWORK,),
    tried=False,
    size_multiple=SIDE,
    minimum_side=SIDE,
    precisions=PRECISIONS,
    memory_estimate_bytes=128 << 20,
    memory_per_pixel_bytes=1700,
)


def load(placement: Placement, store: Store) -> Filler:
    """Return the filler, with its network opened."""
    return open_square(CARD, placement, store)
