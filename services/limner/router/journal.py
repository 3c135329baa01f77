"""The events of one run, in order and numbered, and any number of readers, each at its own pace.

Knows nothing of how a run is made. Appending never waits; a reader that is slow holds up nobody but itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.message import Message

from limner.router.bell import Bell
from limner.v1 import images_pb2, progress_pb2, router_pb2

# What an event takes in memory apart from its picture, as measured with Progress.
_EVENT_BYTES = 900


class Journal:
    """Events are kept as the `RunResponse`s that readers get, so that a picture is copied in once and never again."""

    def __init__(self) -> None:
        """An empty journal."""
        self.ended = False
        self._responses: list[router_pb2.RunResponse] = []
        # Of each step's each picture, where it is in `_responses`.
        self._last_preview: dict[tuple[str, int], int] = {}
        self._picture_bytes = 0
        self._bell = Bell()

    def __len__(self) -> int:
        """Return how many events there are; the last one has this sequence number."""
        return len(self._responses)

    @property
    def bytes_used(self) -> int:
        """Return about how many bytes the journal takes."""
        return self._picture_bytes + _EVENT_BYTES * len(self._responses)

    def append(self, step: str, kind: str, message: Message) -> None:
        """Add an event; `kind` is its name in RunEvent (`started`), `step` is empty for the run as a whole."""
        event = self._add(step)
        field = getattr(event, kind)
        field.SetInParent()  # an empty message is an event too
        field.CopyFrom(message)
        if kind == "preview":
            self._supersede(step, event.preview)
        self._bell.ring()

    def append_result(
        self,
        step: str,
        image: images_pb2.Image,
        kind: router_pb2.ResultKind.ValueType,
        *,
        index: int = 0,
        score: float | None = None,
    ) -> None:
        """Add a StepResult; `index` counts the pictures of a step that makes several."""
        result = self._add(step).result
        result.image.CopyFrom(image)
        result.kind = kind
        result.image_index = index
        if score is not None:
            result.score = score
        self._picture_bytes += picture_bytes(image)
        self._bell.ring()

    def end(self) -> None:
        """Say that no event comes any more."""
        self.ended = True
        self._bell.ring()

    async def follow(self, after: int = 0) -> AsyncIterator[router_pb2.RunResponse]:
        """Yield the events after number `after`, those there are and those to come, until the journal ends."""
        position = after
        while True:
            rung = self._bell.listen()
            while position < len(self._responses):
                yield self._responses[position]
                position += 1
            if self.ended:
                return
            await rung.wait()

    def _add(self, step: str) -> router_pb2.RunEvent:
        response = router_pb2.RunResponse()
        event = response.event
        event.sequence = len(self._responses) + 1
        event.time.GetCurrentTime()
        event.step = step
        self._responses.append(response)
        return event

    def _supersede(self, step: str, preview: progress_pb2.Preview) -> None:
        """Keep only the latest preview of each of a step's pictures: a run may make hundreds."""
        position = self._last_preview.get((step, preview.image_index))
        if position is not None:
            old = self._responses[position].event
            self._picture_bytes -= picture_bytes(old.preview.image)
            # A message that is cleared keeps its memory until it goes as a whole, so another one takes its place.
            bare = router_pb2.RunResponse()
            bare.event.sequence, bare.event.step = old.sequence, old.step
            bare.event.time.CopyFrom(old.time)
            bare.event.preview.step = old.preview.step
            bare.event.preview.image_index = old.preview.image_index
            self._responses[position] = bare
        self._last_preview[step, preview.image_index] = len(self._responses) - 1
        self._picture_bytes += picture_bytes(preview.image)


def picture_bytes(image: images_pb2.Image) -> int:
    """Return how many bytes of an image are its pixels or its file; 0 for a blob's id."""
    if image.WhichOneof("source") == "raw":
        raw = image.raw  # by its sides: to look at `data` would copy it
        return raw.width_px * raw.height_px * raw.channel_count * raw.bit_depth // 8
    return len(image.encoded)
