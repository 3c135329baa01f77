"""What models have in common whose network takes 512 × 512 pixels and nothing else. Knows no card."""

from __future__ import annotations

from limner.core.card import ModelCard
from limner.core.placement import Placement
from limner.engine.networks import open_network
from limner.engine.store import Store
from limner.inpaint.filler import Filler, Options, Window
from limner.inpaint.network import ImageMaskFiller

NETWORK = "network.onnx"
SIDE = 512
PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def window(options: Options) -> Window:
    """Return what makes every neighbourhood 512 × 512 pixels, with the hole in its middle half."""
    return Window(256, 128, context=3.0, least=SIDE, step=SIDE, most_at_once=4)


def open_square(card: ModelCard, placement: Placement, store: Store) -> Filler:
    """Return the filler, with its network opened."""
    return ImageMaskFiller(open_network(store, card, NETWORK, placement), square=SIDE)
