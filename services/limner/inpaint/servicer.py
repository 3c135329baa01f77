"""`limner.v1.InpaintService`: requests to core types and back, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc

from limner.core.codec import Limits
from limner.core.errors import BadArgument, Cancelled, DeadlineExceeded, FieldViolation
from limner.core.geometry import Size
from limner.core.mask import Mask, check_mask
from limner.core.picture import Picture, Pixels
from limner.core.placement import Placement
from limner.engine.catalog import Catalog
from limner.inpaint.filler import FillerSource, Options, Part, Window
from limner.inpaint.strategy import Plan, Strategy, plan, steps
from limner.inpaint.together import Steps, fill_together
from limner.runtime.call import Member, Together, Work, stream
from limner.runtime.device import Device
from limner.runtime.images import check_output, mask_from_proto, picture_from_proto, put_picture
from limner.runtime.job import Job
from limner.runtime.messages import check_enum
from limner.v1 import inpaint_pb2, inpaint_pb2_grpc

STRATEGIES = {
    inpaint_pb2.INPAINT_STRATEGY_UNSPECIFIED: Strategy.AUTO,
    inpaint_pb2.INPAINT_STRATEGY_AUTO: Strategy.AUTO,
    inpaint_pb2.INPAINT_STRATEGY_ORIGINAL: Strategy.ORIGINAL,
    inpaint_pb2.INPAINT_STRATEGY_RESIZE: Strategy.RESIZE,
    inpaint_pb2.INPAINT_STRATEGY_CROP: Strategy.CROP,
}
CPU_PIXELS_AT_ONCE = 512 * 512  # LaMa's parts take a tenth less time in fours of 256², and no less in twos of 512²
RANGES = {"crop_margin_px": (0, 4096), "resize_limit_px": (64, 8192), "radius_px": (1, 100)}


@dataclass(frozen=True)
class Input:
    """A request, read."""

    picture: Picture
    mask: Mask
    options: Options
    plan: Plan
    parts: tuple[Size, ...]  # what the model sees in one step, region by region
    most: int  # parts at once

    @property
    def kind(self) -> tuple[object, ...]:
        """What calls have in common whose parts can be filled at once."""
        return frozenset(self.parts), self.picture.channels - self.picture.has_alpha, self.picture.pixels.dtype


@dataclass(frozen=True)
class Admitted:
    """A model that is in memory, and has the memory that it needs, whenever it runs."""

    catalog: Catalog
    name: str
    window: Window

    def fill(self, parts: Sequence[Part], progress: Callable[[float], None]) -> list[Pixels]:
        pixels = sum(self.window.seen(Size(part.hole.shape[1], part.hole.shape[0])) for part in parts)
        with self.catalog.use(self.name, pixels=pixels) as model:
            fills: list[Pixels] = model.fill(parts, progress)
        return fills


class InpaintServicer(inpaint_pb2_grpc.InpaintServiceServicer):
    """Fills what a mask covers; calls of one model and of one shape, up to `max_batch` parts, at once on its device.

    `max_batch` of 0 is as many as each model can; 1 fills one part after the other."""

    def __init__(
        self,
        models: Mapping[str, FillerSource],
        catalog: Catalog,
        device: Device,
        limits: Limits,
        max_batch: int = 0,
    ) -> None:
        self._models = models
        self._catalog = catalog
        self._device = device
        self._limits = limits
        self._max_batch = max_batch

    async def Inpaint(
        self, request: inpaint_pb2.InpaintRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[inpaint_pb2.InpaintResponse]:
        seed = request.options.seed if request.options.HasField("seed") else None
        responses = stream(
            context,
            self._device,
            inpaint_pb2.InpaintResponse,
            self._work(request),
            seed=seed,
            previews=request.previews,
        )
        async for response in responses:
            yield response

    def _work(self, request: inpaint_pb2.InpaintRequest) -> Work[Input, Picture, inpaint_pb2.InpaintResult]:
        asked = request.options
        check_options(asked)
        check_output(request.output)
        card = self._catalog.card(asked.model if asked.HasField("model") else None, "inpaint")
        options = options_from_proto(asked)
        window = self._models[card.name].window(options)
        model = Admitted(self._catalog, card.name, window)

        def decode(job: Job) -> Input:
            picture = picture_from_proto(request.image, self._limits)
            mask = mask_from_proto(request.mask, self._limits)
            check_mask(mask, picture.size)
            how = plan(
                mask,
                STRATEGIES[asked.strategy],
                window,
                margin=asked.crop_margin_px if asked.HasField("crop_margin_px") else None,
                resize_limit=asked.resize_limit_px if asked.HasField("resize_limit_px") else None,
            )
            parts = tuple(region.part(window) for region in how.regions)
            self._catalog.admit(card.name, max(map(window.seen, parts)))
            device = self._catalog.placement(card.name).device
            most = most_at_once(window, parts, device, self._max_batch)
            return Input(picture, mask, replace(options, seed=job.seed), how, parts, most)

        def run(calls: Sequence[Member[Input, Picture]]) -> None:
            most = calls[0].given.most  # the same for all: they are of one kind
            fill_together(model, most, [(call, its_steps(call)) for call in calls if load(call)])

        def load(call: Member[Input, Picture]) -> bool:
            """Have the model loaded, as a stage of the first call that is not over meanwhile."""
            try:
                call.within(lambda: self._catalog.get(card.name, job=call.job))
            except (Cancelled, DeadlineExceeded) as error:
                call.fail(error)
                return False
            return True

        def its_steps(call: Member[Input, Picture]) -> Steps:
            given = call.given
            return steps(given.picture, given.mask, given.plan, window, given.options, call.job)

        def encode(job: Job, picture: Picture) -> inpaint_pb2.InpaintResult:
            result = inpaint_pb2.InpaintResult()
            put_picture(result.image, picture, request.output)
            return result

        def placement(given: Input) -> Placement:
            where = self._catalog.placement(card.name)
            return replace(where, reason=f"{where.reason}; {given.plan.reason}")

        return Work(
            decode=decode,
            run=Together(
                run,
                key=lambda given: (card.name, given.kind),
                size=lambda given: len(given.parts),
                most=lambda given: given.most,
            ),
            encode=encode,
            placement=placement,
            model=card.name,
            digest=self._catalog.digest(card.name),
        )


def most_at_once(window: Window, parts: Sequence[Size], device: str, max_batch: int) -> int:
    """Return how many such parts are filled at once. On a CPU large ones pay nothing, and would put answers off."""
    most = min(window.most_at_once, max_batch or window.most_at_once)
    if device != "cpu":
        return most
    largest = max(part.pixels for part in parts)
    return max(1, min(most, CPU_PIXELS_AT_ONCE // largest))


def options_from_proto(asked: inpaint_pb2.InpaintOptions) -> Options:
    """Return what is asked of the model; the call's seed comes later."""
    usual = Options()
    return Options(
        radius=asked.radius_px if asked.HasField("radius_px") else usual.radius,
        structure=asked.structure if asked.HasField("structure") else usual.structure,
    )


def check_options(options: inpaint_pb2.InpaintOptions) -> None:
    """Raise BadArgument, with every fault as a violation, unless the options are within the proto's ranges."""
    check_enum(inpaint_pb2.InpaintStrategy, options.strategy, field="options.strategy")
    violations = [
        FieldViolation(
            f"options.{field.name}", f"is {value:g}; give {RANGES[field.name][0]} to {RANGES[field.name][1]}"
        )
        for field, value in options.ListFields()
        if field.name in RANGES and not RANGES[field.name][0] <= value <= RANGES[field.name][1]
    ]
    if violations:
        faults = ", ".join(f"{violation.field} {violation.description}" for violation in violations)
        raise BadArgument(faults, violations=violations)
