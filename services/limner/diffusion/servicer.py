"""`limner.v1.DiffusionService`: requests to what the engine takes, and its pictures back, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import grpc
import numpy as np

from limner.core.card import ModelCard
from limner.core.codec import Limits
from limner.core.errors import BadArgument, FieldViolation, InvalidInput, UnknownModel
from limner.core.geometry import Size
from limner.core.picture import Picture
from limner.core.placement import Placement
from limner.diffusion import sizes
from limner.diffusion.editing import Asked, Change, change
from limner.diffusion.engine import Engine, Generation
from limner.diffusion.model import Pixels, Request
from limner.diffusion.options import (
    number,
    option_faults,
    parameters_of,
    prompt_faults,
    range_faults,
    size_faults,
    size_of,
    told,
)
from limner.diffusion.outpainting import Sides, extend
from limner.diffusion.variant import Task, Variant
from limner.runtime.call import Work, stream
from limner.runtime.device import Device
from limner.runtime.images import check_output, mask_from_proto, picture_from_proto, put_picture
from limner.runtime.job import Job
from limner.v1 import diffusion_pb2, diffusion_pb2_grpc, images_pb2

STRENGTH = {True: 1.0, False: 0.6}  # of editing, with a mask and without
FEATHER = 16  # pixels of the picture in the seam of an extended one
PREVIEW = images_pb2.OutputOptions(format="jpeg", quality=85)  # nobody keeps it, and it has to be made in no time


class Models(Protocol):
    """What there is to ask for, as `limner.diffusion.library.Library` has it."""

    def model_for(self, name: str | None, task: Task) -> str: ...

    def variant(self, name: str) -> Variant: ...

    def cards(self, task: str | None = None) -> list[ModelCard]: ...

    def placement(self, name: str) -> Placement: ...

    def digest(self, name: str) -> str: ...


@dataclass(frozen=True)
class Call:
    """What the three kinds of requests have in common."""

    options: diffusion_pb2.GenerateOptions
    path: str  # of these options in the request
    task: Task
    prompt: str
    output: images_pb2.OutputOptions
    previews: bool
    strength: float = 1.0
    # Reads the pictures of the request and says how the model comes to see them; None: there are none.
    read: Callable[[Variant, Asked], Change] | None = None
    faults: Sequence[FieldViolation] = ()  # of its own options
    told: dict[str, str] = field(default_factory=dict)  # its own options, for Finished


class DiffusionServicer(diffusion_pb2_grpc.DiffusionServiceServicer):
    """Makes, changes and extends pictures; calls of all kinds are under way at the same time on one device.

    Results of several pictures that would be larger than `max_result_bytes` are refused before any work."""

    def __init__(
        self, models: Models, engine: Engine, device: Device, limits: Limits, *, max_result_bytes: int
    ) -> None:
        self._models = models
        self._engine = engine
        self._device = device
        self._limits = limits
        self._max_result_bytes = max_result_bytes

    async def Generate(
        self, request: diffusion_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[diffusion_pb2.GenerateResponse]:
        missing = [] if request.prompt else [FieldViolation("prompt", "is missing; say what the picture shows")]
        call = Call(
            request.options,
            "options",
            "generate",
            request.prompt,
            request.output,
            request.previews,
            faults=missing,
        )
        async for response in self._stream(call, context, diffusion_pb2.GenerateResponse, diffusion_pb2.GenerateResult):
            yield response

    async def Edit(
        self, request: diffusion_pb2.EditRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[diffusion_pb2.EditResponse]:
        asked, has_mask = request.options, request.HasField("mask")
        strength = asked.strength if asked.HasField("strength") else STRENGTH[has_mask]
        margin = asked.crop_margin_px if asked.HasField("crop_margin_px") else None

        def read(variant: Variant, size: Asked) -> Change:
            picture = picture_from_proto(request.image, self._limits)
            mask = mask_from_proto(request.mask, self._limits) if has_mask else None
            return change(picture, mask, variant, margin=margin, asked=size)

        call = Call(
            asked.generate,
            "options.generate",
            "edit",
            request.prompt,
            request.output,
            request.previews,
            strength,
            read,
            list(range_faults(asked, "options")),
            {"strength": number(strength)} | ({} if margin is None else {"crop_margin_px": number(margin)}),
        )
        async for response in self._stream(call, context, diffusion_pb2.EditResponse, diffusion_pb2.EditResult):
            yield response

    async def Outpaint(
        self, request: diffusion_pb2.OutpaintRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[diffusion_pb2.OutpaintResponse]:
        asked = request.options
        strength = asked.strength if asked.HasField("strength") else 1.0
        feathered = asked.feather_px if asked.HasField("feather_px") else FEATHER
        sides = Sides(asked.left_px, asked.top_px, asked.right_px, asked.bottom_px)
        faults = list(range_faults(asked, "options"))
        if not sides.longest:
            faults.append(FieldViolation("options", "extends no side; give left_px, top_px, right_px or bottom_px"))

        def read(variant: Variant, size: Asked) -> Change:
            picture = picture_from_proto(request.image, self._limits)
            self._check_extended(sides.around(picture.size))
            return extend(picture, sides, variant, feathered=feathered, asked=size)

        call = Call(
            asked.generate,
            "options.generate",
            "edit",
            request.prompt,
            request.output,
            request.previews,
            strength,
            read,
            faults,
            {
                "strength": number(strength),
                "left_px": number(sides.left),
                "top_px": number(sides.top),
                "right_px": number(sides.right),
                "bottom_px": number(sides.bottom),
                "feather_px": number(feathered),
            },
        )
        async for response in self._stream(call, context, diffusion_pb2.OutpaintResponse, diffusion_pb2.OutpaintResult):
            yield response

    async def _stream(
        self, call: Call, context: grpc.aio.ServicerContext[Any, Any], response_type: type[Any], result_type: type[Any]
    ) -> AsyncIterator[Any]:
        seed = call.options.seed if call.options.HasField("seed") else None
        # On a helper thread, as what is known of models is read from their files.
        work = await self._device.help(lambda: self._work(call, result_type))
        try:
            async for response in stream(context, self._device, response_type, work, seed=seed, previews=call.previews):
                if response.WhichOneof("event") == "finished":
                    response.finished.model_digest = self._models.digest(work.model)  # known once it was loaded
                yield response
        except InvalidInput as error:
            move_fields(error, call.path)
            raise

    def _work(self, call: Call, result_type: type[Any]) -> Work[Generation, list[Pixels], Any]:
        asked = call.options
        check_output(call.output)
        name = self._models.model_for(asked.model if asked.HasField("model") else None, call.task)
        variant = self._models.variant(name)
        check_call(call, variant)
        self._check_loras(asked)
        changed: Change | None = None

        def decode(job: Job) -> Generation:
            nonlocal changed
            if call.read is not None:
                size = Asked(asked.width_px or None, asked.height_px or None)
                changed = call.read(variant, size)
            parameters = parameters_of(
                asked,
                variant,
                prompt=call.prompt,
                size=size_of(asked, variant) if changed is None else changed.frame.size,
                strength=call.strength,
                seed=job.seed,
            )
            request = Request(parameters)
            if changed is not None:
                request = Request(parameters, changed.image, changed.hole)
            self._check_result(request, changed, call.path)
            job.parameters.update(told(parameters, variant) | call.told)
            return Generation(
                name,
                request,
                weight=asked.weight if asked.HasField("weight") else 1.0,
                preview_interval=asked.preview_interval if asked.HasField("preview_interval") else 1,
                show=(lambda index, step, pixels: show(job, index, step, pixels)) if call.previews else None,
            )

        def show(job: Job, index: int, step: int, pixels: Pixels) -> None:
            shown = pixels if changed is None else changed.frame.shown(pixels)
            image = images_pb2.Image()
            put_picture(image, Picture(np.ascontiguousarray(shown)), PREVIEW)
            job.preview(image, step, index)

        def encode(job: Job, made: list[Pixels]) -> Any:
            result = result_type()
            for index, pixels in enumerate(made):
                job.check()
                picture = Picture(pixels) if changed is None else changed.result(pixels)
                put_picture(result.image if index == 0 else result.more_images.add(), picture, call.output)
            return result

        def placement(given: Generation) -> Placement:
            where = self._models.placement(name)
            sight = "" if changed is None else f"; {changed.reason}"
            return replace(where, reason=f"{name}: {where.reason}{sight}")

        return Work(
            decode=decode,
            run=self._engine.joining,
            encode=encode,
            placement=placement,
            model=name,
        )

    def _check_loras(self, asked: diffusion_pb2.GenerateOptions) -> None:
        """Raise UnknownModel for a LoRA that isn't there."""
        if asked.loras:
            names = {card.name for card in self._models.cards("lora")}
            for lora in asked.loras:
                if lora.name not in names:
                    raise UnknownModel(lora.name, available=names, kind="LoRA")

    def _check_extended(self, size: Size) -> None:
        if size.pixels > self._limits.max_pixels:
            raise BadArgument(
                f"the extended picture would have {size.width} × {size.height} pixels, and at most "
                f"{self._limits.max_pixels} are taken; extend it less, or make it smaller before",
                field="options",
                metadata={"limit": str(self._limits.max_pixels), "actual": str(size.pixels)},
            )

    def _check_result(self, request: Request, changed: Change | None, path: str) -> None:
        """Raise BadArgument for more pictures than one message holds, however badly they can be compressed."""
        count = request.parameters.image_count
        one = (
            request.parameters.width * request.parameters.height * 3
            if changed is None
            else changed.picture.pixels.nbytes
        )
        if count > 1 and count * one > self._max_result_bytes:
            raise BadArgument(
                f"{count} pictures of {one >> 20} MiB may be more than one answer holds, "
                f"{self._max_result_bytes >> 20} MiB; give at most {max(1, self._max_result_bytes // one)}",
                field=f"{path}.image_count",
            )


def move_fields(error: InvalidInput, path: str) -> None:
    """Give an error of a model, which knows options as `options.loras`, the path that they have in the request."""

    def moved(field: str) -> str:
        first, _, rest = field.partition(".")
        known = rest.partition(".")[0].partition("[")[0] in diffusion_pb2.GenerateOptions.DESCRIPTOR.fields_by_name
        return f"{path}.{rest}" if first == "options" and known else field

    violations = []
    for each in error.violations:
        now = moved(each.field)
        if now != each.field:
            error.message = error.message.replace(each.field, now)
            each = FieldViolation(now, each.description.replace(each.field, now))
        violations.append(each)
    error.violations = tuple(violations)


def check_call(call: Call, variant: Variant) -> None:
    """Raise BadArgument, with every fault as a violation, for options that the protos or the model don't allow."""
    violations = [*call.faults, *prompt_faults(call.prompt, "prompt"), *option_faults(call.options, variant, call.path)]
    metadata = {}
    if call.read is None:
        wrong = list(size_faults(call.options, variant, call.path))
        violations += wrong
        metadata = sizes.offered(size_of(call.options, variant), variant) if wrong else {}
    step_count = call.options.step_count or variant.step_count
    if variant.family != "sd3" and call.strength > 0 and call.strength * step_count < 1:
        violations.append(
            FieldViolation(
                "options.strength",
                f"is {call.strength:g}, which is not one of {step_count} steps; give at least {1 / step_count:g}",
            )
        )
    if violations:
        faults = "; ".join(f"{violation.field} {violation.description}" for violation in violations)
        raise BadArgument(faults, violations=violations, metadata=metadata)
