"""Telea's fast marching: fills from the border inwards with weighted means of what lies nearest."""

from __future__ import annotations

import cv2

from limner.core.card import ModelCard
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.inpaint.filler import Filler
from limner.inpaint.models._classic import Classic, window

__all__ = ["CARD", "load", "window"]

CARD = ModelCard(
    name="telea",
    task="inpaint",
    description="Smooth fill from the border inwards. Very fast; for scratches, dust and small spots.",
    licence="Apache-2.0",
    source="OpenCV; Telea, An Image Inpainting Technique Based on the Fast Marching Method, 2004",
)


def load(placement: Placement, store: Store) -> Filler:
    """Return the filler; there is nothing to load."""
    return Classic(cv2.INPAINT_TELEA)
