"""`limner.v1.PostprocessService`: requests to core types and back, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from limner.core.codec import Limits
from limner.core.errors import BadArgument, ImageTooLarge
from limner.core.geometry import Size
from limner.core.mask import Mask, combine
from limner.core.picture import Picture
from limner.core.placement import Placement
from limner.engine.catalog import Catalog
from limner.postprocess.editing import MASK_LIMIT, combination, operations
from limner.postprocess.upscaler import Upscaler, UpscalerSource
from limner.runtime.call import Work, stream
from limner.runtime.device import Device
from limner.runtime.images import check_output, mask_from_proto, picture_from_proto, put_mask, put_picture
from limner.runtime.job import Job
from limner.v1 import images_pb2, postprocess_pb2, postprocess_pb2_grpc

SCALE_RANGE = (0.1, 16.0)
DEFAULT_SCALE = 2.0


@dataclass(frozen=True)
class Bounds:
    """How large a picture may be that comes in, and that goes out, and what a network may take for a tile."""

    input: Limits
    output_pixels: int
    message_bytes: int
    tile_memory_bytes: int


class PostprocessServicer(postprocess_pb2_grpc.PostprocessServiceServicer):
    """Networks run one call at a time on `device`; what takes moments on `editor`, so that it needn't wait for them."""

    def __init__(
        self,
        models: Mapping[str, UpscalerSource],
        catalog: Catalog,
        *,
        device: Device,
        editor: Device,
        bounds: Bounds,
    ) -> None:
        self._models = models
        self._catalog = catalog
        self._device = device
        self._editor = editor
        self._bounds = bounds

    async def Upscale(
        self, request: postprocess_pb2.UpscaleRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[postprocess_pb2.UpscaleResponse]:
        options = request.options
        card = self._catalog.card(options.model if options.HasField("model") else None, "upscale")
        device = self._editor if card.precisions == ("native",) else self._device
        work = self._upscaling(request, card.name, card.digest)
        async for response in stream(context, device, postprocess_pb2.UpscaleResponse, work, previews=request.previews):
            yield response

    async def EditMask(
        self, request: postprocess_pb2.EditMaskRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[postprocess_pb2.EditMaskResponse]:
        work = self._editing(request)
        async for response in stream(context, self._editor, postprocess_pb2.EditMaskResponse, work):
            yield response

    async def Convert(
        self, request: postprocess_pb2.ConvertRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[postprocess_pb2.ConvertResponse]:
        work = self._converting(request)
        async for response in stream(context, self._editor, postprocess_pb2.ConvertResponse, work):
            yield response

    def _upscaling(
        self, request: postprocess_pb2.UpscaleRequest, model: str, digest: str
    ) -> Work[Picture, Picture, postprocess_pb2.UpscaleResult]:
        scale = _scale(request.options)
        source = self._models[model]

        def decode(job: Job) -> Picture:
            picture = picture_from_proto(request.image, self._bounds.input)
            check_output(request.output, channels=picture.channels)
            check_result_size(picture, scale, request.output, self._bounds)
            return picture

        def run(job: Job, picture: Picture) -> Picture:
            upscaler: Upscaler = self._catalog.get(model, job=job)
            size = picture.size.scaled(scale)
            return upscaler.upscale(picture, size, job, memory_bytes=self._bounds.tile_memory_bytes)

        def encode(job: Job, picture: Picture) -> postprocess_pb2.UpscaleResult:
            result = postprocess_pb2.UpscaleResult()
            put_picture(result.image, picture, request.output)
            return result

        return Work(
            decode=decode,
            run=run,
            encode=encode,
            placement=lambda picture: source.placement_for(self._catalog.placement(model), picture.bit_depth),
            model=model,
            digest=digest,
        )

    def _editing(
        self, request: postprocess_pb2.EditMaskRequest
    ) -> Work[list[Mask], Mask, postprocess_pb2.EditMaskResult]:
        if not 1 <= len(request.masks) <= MASK_LIMIT:
            raise BadArgument(f"{len(request.masks)} masks were given; send 1 to {MASK_LIMIT}", field="masks")
        how = combination(request.options)
        wanted = operations(request.options)

        def decode(job: Job) -> list[Mask]:
            check_output(request.output)
            return [
                mask_from_proto(image, self._bounds.input, field=f"masks[{index}]")
                for index, image in enumerate(request.masks)
            ]

        def run(job: Job, masks: list[Mask]) -> Mask:
            with job.stage("edit", 1 + len(wanted)) as step:
                mask = combine(masks, how)
                step(1)
                for done, operation in enumerate(wanted, start=2):
                    mask = operation(mask)
                    step(done)
            return mask

        def encode(job: Job, mask: Mask) -> postprocess_pb2.EditMaskResult:
            result = postprocess_pb2.EditMaskResult()
            put_mask(result.mask, mask, request.output)
            return result

        return Work(
            decode=decode,
            run=run,
            encode=encode,
            placement=lambda _: Placement("cpu", "native", "opencv", "mask operations run on the CPU"),
        )

    def _converting(
        self, request: postprocess_pb2.ConvertRequest
    ) -> Work[Picture, Picture, postprocess_pb2.ConvertResult]:
        def decode(job: Job) -> Picture:
            picture = picture_from_proto(request.image, self._bounds.input)
            check_output(request.output, channels=picture.channels)
            return picture

        def encode(job: Job, picture: Picture) -> postprocess_pb2.ConvertResult:
            result = postprocess_pb2.ConvertResult()
            put_picture(result.image, picture, request.output)
            return result

        return Work(
            decode=decode,
            run=lambda job, picture: picture,
            encode=encode,
            placement=lambda _: Placement("cpu", "native", "pillow", "conversion runs on the CPU"),
        )


def check_result_size(picture: Picture, scale: float, output: images_pb2.OutputOptions, bounds: Bounds) -> None:
    """Raise ImageTooLarge if the enlarged picture would have more pixels than this server makes, or, sent raw, more
    bytes than a message takes."""
    size = picture.size.scaled(scale)
    what = f"{scale:g} times {picture.width}×{picture.height} is {size.width}×{size.height}"
    if size.pixels > bounds.output_pixels:
        raise _too_large(what, size, size.pixels, bounds.output_pixels, "pixels", picture.size)
    depth = output.bit_depth if output.HasField("bit_depth") else picture.bit_depth
    raw_bytes = size.pixels * picture.channels * depth // 8
    if output.format == "raw" and raw_bytes > bounds.message_bytes:
        raise _too_large(what, size, raw_bytes, bounds.message_bytes, "bytes", picture.size)


def _too_large(what: str, size: Size, actual: int, limit: int, unit: str, source: Size) -> ImageTooLarge:
    possible = (limit * size.pixels / actual / source.pixels) ** 0.5
    return ImageTooLarge(
        f"{what}, {actual} {unit}, and at most {limit} are made here; ask for a scale of {possible:.3g} or less",
        field="options.scale",
        metadata={"limit": str(limit), "actual": str(actual)},
    )


def _scale(options: postprocess_pb2.UpscaleOptions) -> float:
    scale = options.scale if options.HasField("scale") else DEFAULT_SCALE
    low, high = SCALE_RANGE
    if not low <= scale <= high:  # neither is what isn't a number
        raise BadArgument(f"options.scale is {scale:g}; give {low:g} to {high:g}", field="options.scale")
    return scale
