"""Foreground from background without a hint: what stands out from the picture's frame, cut along the edges."""

from __future__ import annotations

import cv2
import numpy as np

from limner.core.card import ModelCard
from limner.core.mask import Mask
from limner.core.picture import Picture
from limner.core.placement import Placement
from limner.engine.store import Store
from limner.runtime.job import Job
from limner.segment.adapter import BackgroundRemover
from limner.segment.find import foreground
from limner.segment.matting import soften
from limner.segment.scene import look

CARD = ModelCard(
    name="saliency-grabcut",
    task="remove-background",
    description="What stands out from the picture's frame, without weights. For things on a calm background that do "
    "not touch the frame.",
    licence="Apache-2.0",
    source="OpenCV; Zhu et al., Saliency Optimization from Robust Background Detection, 2014; Rother et al., GrabCut, "
    "2004; He et al., Guided Image Filtering, 2010",
    engine="opencv",
)


class SaliencyGrabCut:
    """The model; it has no state."""

    def foreground(self, picture: Picture, job: Job) -> Mask:
        """Return (height, width) uint8, 0 background to 255 foreground, soft at edges."""
        scene = look(picture.rgb8(), job.check)
        hard = foreground(scene, job.check)
        job.check()
        soft = soften(hard, scene.detail)
        if soft.shape == (picture.height, picture.width):
            return soft
        return np.asarray(cv2.resize(soft, (picture.width, picture.height), interpolation=cv2.INTER_LINEAR))


def load(placement: Placement, store: Store) -> BackgroundRemover:
    """Return the model; there is nothing to load."""
    return SaliencyGrabCut()
