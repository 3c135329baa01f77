"""What a run gave, step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from limner.v1 import images_pb2, progress_pb2, router_pb2


@dataclass(frozen=True)
class Result:
    """The result of one step.

    `image` holds it inline, never as a blob id; `more` holds the other pictures of a step that makes several. `score`
    says how sure a segmentation is, 0 to 1, None if unknown. `finished` tells model, seed, timings and what pictures
    were made from, None as long as the step has not ended.
    """

    step: str
    image: images_pb2.Image
    kind: Literal["image", "mask"]
    score: float | None = None
    more: tuple[images_pb2.Image, ...] = ()
    finished: progress_pb2.Finished | None = None

    @property
    def data(self) -> bytes:
        """The image file; for results asked for as `raw` the bare pixels, whose shape is in `image.raw`."""
        return _data(self.image)

    @property
    def files(self) -> list[bytes]:
        """The image files of all pictures, as `data`."""
        return [_data(image) for image in (self.image, *self.more)]

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture: alone, it gives that picture again. Empty as long as the step has not ended."""
        if self.finished is None:
            return []
        return [(self.finished.seed + i) % (1 << 64) for i in range(1 + len(self.more))]


def add(earlier: Result | None, event: router_pb2.RunEvent, image: images_pb2.Image) -> Result:
    """The result that an event tells of, its picture replaced by `image`, together with what its step gave before."""
    if earlier is not None:
        return replace(earlier, more=(*earlier.more, image))
    result = event.result
    return Result(
        step=event.step,
        image=image,
        kind="mask" if result.kind == router_pb2.RESULT_KIND_MASK else "image",
        score=result.score if result.HasField("score") else None,
    )


def _data(image: images_pb2.Image) -> bytes:
    return image.raw.data if image.HasField("raw") else image.encoded
