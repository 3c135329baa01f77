"""Navier-Stokes: continues lines of equal brightness into the hole as a fluid would flow."""

from __future__ import annotations

import cv2

from limner.core.card import ModelCard
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.inpaint.filler import Filler
from limner.inpaint.models._classic import Classic, window

__all__ = ["CARD", "load", "window"]

CARD = ModelCard(
    name="navier-stokes",
    task="inpaint",
    description="Smooth fill that continues edges into the hole. Very fast; for scratches, dust and small spots.",
    licence="Apache-2.0",
    source="OpenCV; Bertalmio, Bertozzi and Sapiro, Navier-Stokes, Fluid Dynamics, and Image Inpainting, 2001",
)


def load(placement: Placement, store: Store) -> Filler:
    """Return the filler; there is nothing to load."""
    return Classic(cv2.INPAINT_NS)
