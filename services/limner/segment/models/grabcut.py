"""GrabCut from a first guess that needs no training: superpixels, merge trees, and a choice among their nodes."""

from __future__ import annotations

from limner.core.card import ModelCard
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.segment.adapter import Segmenter

CARD = ModelCard(
    name="grabcut",
    task="segment",
    description="Objects from clicks and boxes by colour and edges, without weights. For things that differ from what "
    "surrounds them; one click often suffices, further ones correct.",
    licence="Apache-2.0",
    source="OpenCV; Rother et al., GrabCut, 2004; Achanta et al., SLIC, 2012; Uijlings et al., Selective Search, 2013",
    engine="opencv",
)


def load(placement: Placement, store: Store) -> Segmenter:
    """Return the model; there is nothing to load but code."""
    from limner.segment.segmenter import GrabCut  # scipy, which a server need not wait for when it starts

    return GrabCut()
