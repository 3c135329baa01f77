"""MI-GAN: a network small enough for phones, which takes 512 × 512 pixels and nothing else."""

from __future__ import annotations

from limner.core.card import ModelCard, WeightFile
from limner.core.placement import Placement
from limner.engine.networks import open_network
from limner.engine.store import Store
from limner.inpaint.filler import Filler, Options, Window
from limner.inpaint.network import ImageMaskFiller

NETWORK = "network.onnx"
SIDE = 512

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
    precisions=("fp32", "bf16", "fp16", "int8"),
    memory_estimate_bytes=128 << 20,
    memory_per_pixel_bytes=1700,
)


def window(options: Options) -> Window:
    """Return what makes every neighbourhood 512 × 512 pixels, with the hole in its middle half."""
    return Window(256, 128, context=3.0, least=SIDE, step=SIDE, most_at_once=4)


def load(placement: Placement, store: Store) -> Filler:
    """Return the filler, with its network opened."""
    return ImageMaskFiller(open_network(store, CARD, NETWORK, placement), square=SIDE)
