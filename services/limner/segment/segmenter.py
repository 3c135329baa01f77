"""The `grabcut` model: superpixels, merge trees, a choice among their nodes, and GrabCut."""

from __future__ import annotations

import cv2
import numpy as np

from limner.core.geometry import Box, Size
from limner.core.picture import Picture
from limner.runtime.job import Job
from limner.segment.adapter import Embedding, Found, Prompt
from limner.segment.find import by_box, by_clicks
from limner.segment.regions import Array
from limner.segment.scene import Scene, look


class GrabCut:
    """The model; it has no state."""

    def encode(self, picture: Picture, job: Job) -> Scene:
        """Find regions and how they merge."""
        return look(picture.rgb8(), job.check)

    def decode(self, embedding: Embedding, size: Size, prompt: Prompt, job: Job) -> Found:
        """Choose among the regions, and cut along the edges.

        Boxes are looked into one by one. Positive clicks mean one object besides them, unless all are in boxes; then
        they say what in the boxes is meant, as negative ones do everywhere.
        """
        if not isinstance(embedding, Scene):
            raise TypeError(f"an embedding of another model: {type(embedding).__name__}")
        scene = embedding
        detail = scene.detail_size
        scale = np.array([detail.width / size.width, detail.height / size.height])
        positive, negative = prompt.positive * scale, prompt.negative * scale
        found = np.zeros((detail.height, detail.width), bool)
        scores = []
        boxes = [scaled_box(box, scale, detail) for box in prompt.boxes]
        for box in boxes:
            part, score = by_box(scene, box, positive, negative, job.check)
            found |= part
            scores.append(score)
            job.check()
        beside = positive[~np.array([any(holds(box, point) for box in boxes) for point in positive], bool)]
        if len(beside):
            part, score = by_clicks(scene, beside, negative, job.check)
            found |= part
            scores.append(score)
            job.check()
        return Found(full_size(found, size), min(scores) if scores else None)


def holds(box: Box, point: Array) -> bool:
    """Whether a point, x and y, is in a box."""
    return bool(box.x <= point[0] < box.right and box.y <= point[1] < box.bottom)


def scaled_box(box: Box, scale: Array, within: Size) -> Box:
    """A box in another size's pixels, at least one of them."""
    left, top = min(int(box.x * scale[0]), within.width - 1), min(int(box.y * scale[1]), within.height - 1)
    right = max(left + 1, min(within.width, int(np.ceil(box.right * scale[0]))))
    bottom = max(top + 1, min(within.height, int(np.ceil(box.bottom * scale[1]))))
    return Box(left, top, right - left, bottom - top)


def full_size(found: Array, size: Size) -> Array:
    """(h, w) bool to (height, width) uint8, 0 and 255."""
    mask = found.astype(np.uint8) * 255
    if found.shape == (size.height, size.width):
        return mask
    enlarged = cv2.resize(mask, (size.width, size.height), interpolation=cv2.INTER_LINEAR)
    return np.where(enlarged > 127, np.uint8(255), np.uint8(0))
