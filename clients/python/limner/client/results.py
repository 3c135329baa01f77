"""What a run gave, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from limner.v1 import images_pb2, router_pb2


@dataclass(frozen=True)
class Result:
    """The result of one step.

    `image` holds it inline, never as a blob id. `score` says how sure a segmentation is, 0 to 1, None if unknown.
    """

    step: str
    image: images_pb2.Image
    kind: Literal["image", "mask"]
    score: float | None = None

    @property
    def data(self) -> bytes:
        """The image file; for results asked for as `raw` the bare pixels, whose shape is in `image.raw`."""
        return self.image.raw.data if self.image.HasField("raw") else self.image.encoded


def from_event(event: router_pb2.RunEvent, image: images_pb2.Image) -> Result:
    """The result that an event tells of, its picture replaced by `image`."""
    result = event.result
    return Result(
        step=event.step,
        image=image,
        kind="mask" if result.kind == router_pb2.RESULT_KIND_MASK else "image",
        score=result.score if result.HasField("score") else None,
    )
