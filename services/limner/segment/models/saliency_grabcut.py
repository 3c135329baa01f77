"""Foreground from background without a hint: what stands out from the picture's frame, cut along the edges."""

from __future__ import annotations

from limner.core.card import ModelCard
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.segment.adapter import BackgroundRemover

CARD = ModelCard(
    name="saliency-grabcut",
    task="remove-background",
    description="What stands out from the picture's frame, is in focus and about the middle, without weights. For one "
    "thing on a calm or blurred background.",
    licence="Apache-2.0",
    source="OpenCV; Zhu et al., Saliency Optimization from Robust Background Detection, 2014; Zhang et al., Minimum "
    "Barrier Salient Object Detection, 2015; Rother et al., GrabCut, 2004; He et al., Guided Image Filtering, 2010",
    engine="opencv",
)


def load(placement: Placement, store: Store) -> BackgroundRemover:
    """Return the model; there is nothing to load but code."""
    from limner.segment.remover import SaliencyGrabCut  # scipy, which a server need not wait for when it starts

    return SaliencyGrabCut()
