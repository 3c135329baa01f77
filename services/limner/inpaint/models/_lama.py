"""What LaMa's models have in common: they differ in what they learnt from. Knows no card."""

from __future__ import annotations

from limner.core.card import ModelCard
from limner.core.placement import Placement
from limner.engine.networks import open_network
from limner.engine.store import Store
from limner.inpaint.filler import Filler, Options, Window
from limner.inpaint.network import ImageMaskFiller

NETWORK = "network.onnx"
MULTIPLE = 8
SMALLEST = 16  # its middle has an eighth of the side, and reflects one pixel of that
PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def window(options: Options) -> Window:
    """Return what was trained at about 250 pixels a side and still sees structures well at a thousand.

    Steps are small, since time follows what is seen, and on CPUs equal shapes save less than a smaller one does."""
    return Window(480, 240, context=3.0, least=240, step=48, most_at_once=4)


def open_lama(card: ModelCard, placement: Placement, store: Store) -> Filler:
    """Return the filler, with its network opened."""
    return ImageMaskFiller(open_network(store, card, NETWORK, placement), multiple=MULTIPLE, least=SMALLEST)
