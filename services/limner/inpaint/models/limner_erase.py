"""limner-erase: a small LaMa that ships with Limner, trained by `training/erase` on freely licensed photographs."""

from __future__ import annotations

from limner.core.card import ModelCard
from limner.core.placement import Placement
from limner.engine.shipped import shipped
from limner.engine.store import Store
from limner.inpaint.filler import Filler, Options, Window
from limner.inpaint.models._lama import MULTIPLE, SMALLEST, open_lama

_FILES = shipped("limner-erase")

# In bf16 the smooth fill that the network corrects is off by more than a level of 8 bits, and fills by up to 0.2 dB.
_PRECISIONS = ("fp32",)

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
    precisions=_PRECISIONS,
    memory_estimate_bytes=64 << 20,
    memory_per_pixel_bytes=700,
)


def window(options: Options) -> Window:
    """Return about what it was trained at: holes of up to 48 pixels a side. Larger ones it sees reduced.

    Its fills are smooth: detail looked up for them is noise that makes them worse.
    """
    return Window(48, 48, context=3.0, least=144, step=48, most_at_once=4, detail=False)


def load(placement: Placement, store: Store) -> Filler:
    """Return the filler, with its network opened."""
    return open_lama(CARD, placement, store)
