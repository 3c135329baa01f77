"""MAT: a transformer that draws large holes from coarse to fine, at 512 × 512 pixels and nothing else."""

from __future__ import annotations

from limner.core.card import ModelCard, WeightFile
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.inpaint.filler import Filler
from limner.inpaint.models._square import NETWORK, PRECISIONS, SIDE, open_square, window

__all__ = ["CARD", "load", "window"]

CARD = ModelCard(
    name="mat",
    task="inpaint",
    description="Draws what large holes may have hidden, even most of a picture. Slow; for non-commercial use only.",
    licence="CC-BY-NC-4.0",
    source="https://github.com/fenglinglwb/MAT (Places, 512 × 512); Li et al., MAT, 2022",
    files=(
        WeightFile(
            "Places_512_FullData_G.pth",
            "https://github.com/Sanster/models/releases/download/add_mat/Places_512_FullData_G.pth",
            "md5:8ca927835fa3f5e21d65ffcb165377ed",
        ),
    ),
    exports=(NETWORK,),
    needs_acceptance=True,
    tried=False,
    size_multiple=SIDE,
    minimum_side=SIDE,
    precisions=PRECISIONS,
    memory_estimate_bytes=560 << 20,
    memory_per_pixel_bytes=5200,
)


def load(placement: Placement, store: Store) -> Filler:
    """Return the filler, with its network opened."""
    return open_square(CARD, placement, store)
