"""LaMa's network, trained on drawings: anime and manga."""

from __future__ import annotations

from limner.core.card import ModelCard, WeightFile
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.inpaint.filler import Filler
from limner.inpaint.models._lama import MULTIPLE, NETWORK, PRECISIONS, SMALLEST, open_lama, window

__all__ = ["CARD", "load", "window"]

CARD = ModelCard(
    name="anime-lama",
    task="inpaint",
    description="LaMa trained on drawings: continues flat colours, screen tones and outlines. For anime and manga.",
    licence="not stated by its author",
    source="https://huggingface.co/dreMaz/AnimeMangaInpainting, as converted by Sanster; Suvorov et al., 2022",
    files=(
        WeightFile(
            "anime-manga-big-lama.pt",
            "https://github.com/Sanster/models/releases/download/AnimeMangaInpainting/anime-manga-big-lama.pt",
            "md5:29f284f36a0a510bcacf39ecf4c4d54f",
        ),
    ),
    exports=(NETWORK,),
    needs_acceptance=True,
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
