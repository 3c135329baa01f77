"""The `saliency-grabcut` model: what a picture is of, cut out with soft edges."""

from __future__ import annotations

import cv2
import numpy as np

from limner.core.mask import Mask
from limner.core.picture import Picture
from limner.runtime.job import Job
from limner.segment.foreground import foreground
from limner.segment.matting import soften
from limner.segment.scene import look


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
