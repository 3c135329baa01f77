"""limner-erase: a small LaMa that ships with Limner, trained by `training/erase` on freely licensed photographs."""

from __future__ import annotations

from limner.core.card import ModelCard
from limner.core.placement import Placement
from limner.engine.shipped import shipped
from limner.engine.store import Store
from limner.inpaint.filler import Filler, Options, Window
from limner.inpaint.models._lama import MULTIPLE, SMALLEST, open_lama

_FILES = shipped("limner-erase")

CARD = ModelCard(
    name="limner-erase",
    task="inpaint",
    description="A small LaMa that ships with Limner. Continues surroundings over objects, strokes and boxes.",
    licence="Apache-2.0",
    source="docs/models/limner-erase.md; the method is Suvorov et al., 2022",
    files=_FILES,
    digest=_FILES[0].digest.removeprefix("sha256:"),
    size_multiple=MULTIPLE,
    minimum_side=SMALLEST,
    precisions=("fp32", "bf16"),
    memory_estimate_bytes=64 << 20,
    memory_per_pixel_bytes=700,
)


def window(options: Options) -> Window:
    """Return what it was trained at: holes of up to 85 pixels a side in 256. Larger ones it sees reduced."""
    return Window(128, 64, context=3.0, least=128, step=32, most_at_once=4)


def load(placement: Placement, store: Store) -> Filler:
    """Return the filler, with its network opened."""
    return open_lama(CARD, placement, store)
