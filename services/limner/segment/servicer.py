"""`limner.v1.SegmentService`: requests to core types and back, nothing else."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from limner.core.codec import Limits
from limner.core.errors import BadArgument, FieldViolation
from limner.core.geometry import Box, Size
from limner.core.mask import bounds
from limner.core.picture import Picture
from limner.engine.catalog import Catalog
from limner.runtime.call import Work, stream
from limner.runtime.device import Device
from limner.runtime.images import check_output, picture_from_proto, put_mask, put_picture
from limner.runtime.job import Job
from limner.runtime.messages import check_enum
from limner.segment.adapter import Embedding, Found, Prompt, Segmenter
from limner.segment.cache import EmbeddingCache, picture_id
from limner.segment.matting import cutout
from limner.v1 import images_pb2, segment_pb2, segment_pb2_grpc

CLICK_LIMIT = 256
BOX_LIMIT = 16


@dataclass(frozen=True)
class Asked:
    """A request, read."""

    picture: Picture
    id: str
    prompt: Prompt


@dataclass(frozen=True)
class Encoded:
    """A picture's embedding."""

    id: str
    embedding: Embedding
    cached: bool


class SegmentServicer(segment_pb2_grpc.SegmentServiceServicer):
    """Finds objects, one call at a time on its device."""

    def __init__(self, catalog: Catalog, device: Device, limits: Limits, cache: EmbeddingCache) -> None:
        self._catalog = catalog
        self._device = device
        self._limits = limits
        self._cache = cache

    async def Segment(
        self, request: segment_pb2.SegmentRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[segment_pb2.SegmentResponse]:
        work = self._segment(request)
        async for response in stream(context, self._device, segment_pb2.SegmentResponse, work):
            yield response

    async def Embed(
        self, request: segment_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[segment_pb2.EmbedResponse]:
        async for response in stream(context, self._device, segment_pb2.EmbedResponse, self._embed(request)):
            yield response

    async def RemoveBackground(
        self, request: segment_pb2.RemoveBackgroundRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[segment_pb2.RemoveBackgroundResponse]:
        work = self._remove_background(request)
        async for response in stream(context, self._device, segment_pb2.RemoveBackgroundResponse, work):
            yield response

    def _segment(
        self, request: segment_pb2.SegmentRequest
    ) -> Work[Asked, tuple[Found, bool], segment_pb2.SegmentResult]:
        asked = request.options
        check_hints(asked)
        check_output(request.output)
        card = self._catalog.card(asked.model if asked.HasField("model") else None, "segment")

        def decode(job: Job) -> Asked:
            picture = picture_from_proto(request.image, self._limits)
            return Asked(picture, picture_id(picture), prompt_from_proto(asked, picture.size))

        def run(job: Job, given: Asked) -> tuple[Found, bool]:
            model: Segmenter = self._catalog.get(card.name, job=job)
            encoded = self._encoded(model, card.name, given.picture, given.id, job)
            with job.stage("segment"):
                found = model.decode(encoded.embedding, given.picture.size, given.prompt, job)
            if not found.mask.any():
                raise nothing_found(asked)
            return found, encoded.cached

        def encode(job: Job, output: tuple[Found, bool]) -> segment_pb2.SegmentResult:
            found, cached = output
            box = bounds(found.mask)
            assert box is not None  # run saw to it
            result = segment_pb2.SegmentResult(
                score=found.score,
                bounds=images_pb2.Box(x_px=box.x, y_px=box.y, width_px=box.width, height_px=box.height),
                embedding_cached=cached,
            )
            put_mask(result.mask, found.mask, request.output)
            return result

        return Work(
            decode=decode,
            run=run,
            encode=encode,
            placement=lambda given: self._catalog.placement(card.name),
            model=card.name,
            digest=card.digest,
        )

    def _embed(self, request: segment_pb2.EmbedRequest) -> Work[Asked, Encoded, segment_pb2.EmbedResult]:
        card = self._catalog.card(request.model if request.HasField("model") else None, "segment")

        def decode(job: Job) -> Asked:
            picture = picture_from_proto(request.image, self._limits)
            return Asked(picture, picture_id(picture), Prompt())

        def run(job: Job, given: Asked) -> Encoded:
            return self._encoded(self._catalog.get(card.name, job=job), card.name, given.picture, given.id, job)

        return Work(
            decode=decode,
            run=run,
            encode=lambda job, encoded: segment_pb2.EmbedResult(
                embedding_id=encoded.id, size_bytes=encoded.embedding.size_bytes, embedding_cached=encoded.cached
            ),
            placement=lambda given: self._catalog.placement(card.name),
            model=card.name,
            digest=card.digest,
        )

    def _encoded(self, model: Segmenter, name: str, picture: Picture, id_: str, job: Job) -> Encoded:
        """Return the picture's embedding, from the cache or made now."""
        embedding = self._cache.get(name, id_)
        if embedding is not None:
            return Encoded(id_, embedding, cached=True)
        with job.stage("encode-picture"):
            embedding = model.encode(picture, job)
        self._cache.put(name, id_, embedding)
        return Encoded(id_, embedding, cached=False)

    def _remove_background(
        self, request: segment_pb2.RemoveBackgroundRequest
    ) -> Work[Picture, Picture, segment_pb2.RemoveBackgroundResult]:
        asked = request.options
        check_enum(segment_pb2.BackgroundOutput, asked.result, field="options.result")
        as_mask = asked.result == segment_pb2.BACKGROUND_OUTPUT_MASK
        check_output(request.output, channels=1 if as_mask else 4)
        card = self._catalog.card(asked.model if asked.HasField("model") else None, "remove-background")

        def run(job: Job, picture: Picture) -> Picture:
            model = self._catalog.get(card.name, job=job)
            with job.stage("remove-background"):
                foreground = model.foreground(picture, job)
            return Picture(foreground[:, :, None]) if as_mask else cutout(picture, foreground)

        def encode(job: Job, picture: Picture) -> segment_pb2.RemoveBackgroundResult:
            result = segment_pb2.RemoveBackgroundResult()
            put_picture(result.image, picture, request.output)
            return result

        return Work(
            decode=lambda job: picture_from_proto(request.image, self._limits),
            run=run,
            encode=encode,
            placement=lambda picture: self._catalog.placement(card.name),
            model=card.name,
            digest=card.digest,
        )


def check_hints(options: segment_pb2.SegmentOptions) -> None:
    """Raise BadArgument for what is wrong with clicks and boxes whatever the picture's size."""
    if len(options.clicks) > CLICK_LIMIT:
        raise BadArgument(f"{len(options.clicks)} clicks; give at most {CLICK_LIMIT}", field="options.clicks")
    if len(options.boxes) > BOX_LIMIT:
        raise BadArgument(f"{len(options.boxes)} boxes; give at most {BOX_LIMIT}", field="options.boxes")
    for i, click in enumerate(options.clicks):
        check_enum(segment_pb2.ClickLabel, click.label, field=f"options.clicks[{i}].label")
    if not options.boxes and all(click.label == segment_pb2.CLICK_LABEL_NEGATIVE for click in options.clicks):
        raise BadArgument(
            "nothing says where the object is: give at least one positive click or one box", field="options.clicks"
        )


def prompt_from_proto(options: segment_pb2.SegmentOptions, size: Size) -> Prompt:
    """Return the hints. Raises BadArgument, with every fault as a violation, for those outside the picture."""
    faults = []
    for i, click in enumerate(options.clicks):
        for name, value, side in (("x_px", click.x_px, size.width), ("y_px", click.y_px, size.height)):
            if not (math.isfinite(value) and 0 <= value <= side - 1):
                faults.append(FieldViolation(f"options.clicks[{i}].{name}", f"is {value:g}; give 0 to {side - 1}"))
    for i, box in enumerate(options.boxes):
        for axis, start, extent, side in (
            ("x_px", box.x_px, box.width_px, size.width),
            ("y_px", box.y_px, box.height_px, size.height),
        ):
            length = "width_px" if axis == "x_px" else "height_px"
            if start >= side:
                faults.append(FieldViolation(f"options.boxes[{i}].{axis}", f"is {start}; give 0 to {side - 1}"))
            elif not 1 <= extent <= side - start:
                faults.append(FieldViolation(f"options.boxes[{i}].{length}", f"is {extent}; give 1 to {side - start}"))
    if faults:
        told = ", ".join(f"{fault.field} {fault.description}" for fault in faults)
        raise BadArgument(f"not inside the picture of {size.width} × {size.height}: {told}", violations=faults)
    negative = segment_pb2.CLICK_LABEL_NEGATIVE

    def points(label_is_negative: bool) -> np.ndarray:
        chosen = [(c.x_px, c.y_px) for c in options.clicks if (c.label == negative) == label_is_negative]
        return np.array(chosen, np.float64).reshape(-1, 2)

    boxes = tuple(Box(box.x_px, box.y_px, box.width_px, box.height_px) for box in options.boxes)
    return Prompt(points(False), points(True), boxes)


def nothing_found(options: segment_pb2.SegmentOptions) -> BadArgument:
    """The error for an empty mask: it says where nothing was found."""
    places = [
        f"({click.x_px:g}, {click.y_px:g})"
        for click in options.clicks
        if click.label != segment_pb2.CLICK_LABEL_NEGATIVE
    ] + [f"box ({box.x_px}, {box.y_px}, {box.width_px} × {box.height_px})" for box in options.boxes]
    return BadArgument(
        f"nothing found at {', '.join(places)}; add a click on the object, draw a box around it, "
        "or take away negative clicks close by",
        field="options.clicks" if options.clicks else "options.boxes",
    )
