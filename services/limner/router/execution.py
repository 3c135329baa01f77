"""Carries out a plan: every step as soon as what it takes is there, so independent steps at the same time, but of one
run no more than `AT_ONCE` at the servers of a kind.

Between steps pixels travel raw. A result that only the caller gets is encoded by the server that made it, as the step's
`output` says; one that other steps take too travels raw and is encoded for the caller by a call of its own, so that
nothing lossy feeds the next step. Of several pictures that a step makes the next steps take the first.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from limner.core.errors import FieldViolation, InvalidInput, LimnerError
from limner.router.blobs import BlobStore
from limner.router.calls import Answer, Caller
from limner.router.journal import Journal, picture_bytes
from limner.router.pipeline import Plan, PlannedStep
from limner.router.steps import ENCODE, MASK, OPERATIONS, gives, message_of, operation_name, operation_of
from limner.runtime import logs
from limner.runtime.messages import duration
from limner.runtime.status import as_limner_error
from limner.runtime.telemetry import tracer
from limner.v1 import images_pb2, progress_pb2

RAW = images_pb2.OutputOptions(format="raw")
AT_ONCE = 8  # calls of one run to the servers of a kind: a run of 64 steps would fill a server's queue, and fail by it


async def execute(
    plan: Plan,
    inputs: Mapping[str, images_pb2.Image],
    *,
    caller: Caller,
    journal: Journal,
    blobs: BlobStore,
    inline_limit: int,
) -> None:
    """Do all steps and write what happens into the journal.

    Raises what the first step to fail raised, with its name in the error's metadata; the others are cancelled.
    """
    pictures = _Pictures(plan)
    for name in sorted(plan.inputs):
        pictures.put(name, await _resolved(inputs[name], blobs))
    execution = _Execution(caller, journal, blobs, inline_limit, pictures, inputs)
    try:
        async with asyncio.TaskGroup() as group:
            for step in plan.steps:
                group.create_task(execution.step(step), name=f"step {step.name}")
    except BaseExceptionGroup as failures:
        # In the order in which they happened; the rest is what the others' cancellation led to.
        raise failures.exceptions[0] from None


async def _resolved(image: images_pb2.Image, blobs: BlobStore) -> images_pb2.Image:
    """Return an image that a model server takes: a blob's bytes instead of its id."""
    if image.WhichOneof("source") != "blob_id":
        return image
    return images_pb2.Image(encoded=await blobs.read(image.blob_id))


class _Pictures:
    """Inputs and results that steps still have to take. A result is let go with the last step that takes it; inputs
    live as long as the request."""

    def __init__(self, plan: Plan) -> None:
        taken = [slot.name for step in plan.steps for slot in step.slots]
        self._left = {name: taken.count(name) for name in taken}
        self._there = {name: asyncio.Event() for name in taken}
        self._images: dict[str, images_pb2.Image] = {}

    def put(self, name: str, image: images_pb2.Image) -> None:
        self._images[name] = image
        self._there[name].set()

    async def wait(self, name: str) -> None:
        await self._there[name].wait()

    def take(self, name: str) -> images_pb2.Image:
        self._left[name] -= 1
        return self._images[name] if self._left[name] else self._images.pop(name)


class _Execution:
    """What the steps of one run share."""

    def __init__(
        self,
        caller: Caller,
        journal: Journal,
        blobs: BlobStore,
        inline_limit: int,
        pictures: _Pictures,
        inputs: Mapping[str, images_pb2.Image],
    ) -> None:
        self._caller = caller
        self._journal = journal
        self._blobs = blobs
        self._inline_limit = inline_limit
        self._pictures = pictures
        self._inputs = inputs
        self._turns: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))

    async def step(self, planned: PlannedStep) -> None:
        """Wait for what the step takes, do it, and pass its result on."""
        for slot in planned.slots:
            await self._pictures.wait(slot.name)
        logs.step.set(planned.name)
        with tracer.start_as_current_span(f"step {planned.name}", attributes={"limner.step": planned.name}):
            try:
                await self._do(planned)
            except Exception as error:
                # What was not meant to be raised is in the log by now.
                raise _blamed(as_limner_error(error), planned, self._inputs) from None

    async def _do(self, planned: PlannedStep) -> None:
        operation = operation_of(planned.step)
        async with self._turns[operation.server]:
            # The request is built here and handed over, so that its pictures are let go when the call is over.
            answer = await self._caller.call(
                operation,
                operation.request(
                    message_of(planned.step),
                    [self._pictures.take(slot.name) for slot in planned.slots],
                    _encoding(planned),
                ),
                step=planned.name,
                tell=lambda kind, message: self._journal.append(planned.name, kind, message),
            )
        images = operation.results(answer.result)
        if planned.taken:
            self._pictures.put(planned.name, images[0])
        if planned.wanted:
            score = answer.result.score if _has_score(answer) else None
            if planned.taken and planned.step.output != RAW:
                images = await self._encoded(planned, images, answer.finished)
            for index, image in enumerate(images):
                await self._send(planned, image, index, score)
        self._journal.append(planned.name, "finished", answer.finished)

    async def _encoded(
        self, planned: PlannedStep, images: Sequence[images_pb2.Image], finished: progress_pb2.Finished
    ) -> list[images_pb2.Image]:
        """Return raw results as the caller wants them. The time it takes is added to the step's timings."""
        output = images_pb2.OutputOptions()
        output.CopyFrom(planned.step.output)
        if gives(planned.step) == MASK and not output.HasField("format"):
            output.format = "png"  # what the step's own server would have chosen
        began = time.perf_counter()
        operation = OPERATIONS["convert"]
        encoded = []
        for image in images:
            # It is part of the step, so its own Queued, Started and so on are not told.
            async with self._turns[operation.server]:
                answer = await self._caller.call(
                    operation,
                    operation.request(ENCODE.convert, [image], output),
                    step=planned.name,
                    tell=lambda kind, message: None,
                )
            encoded += operation.results(answer.result)
        finished.timings.add(stage="convert", duration=duration(time.perf_counter() - began))
        return encoded

    async def _send(self, planned: PlannedStep, image: images_pb2.Image, index: int, score: float | None) -> None:
        """Tell a result, inline or, if it is large, as a blob; raw ones stay inline, as a blob is a file."""
        if image.WhichOneof("source") == "encoded" and picture_bytes(image) > self._inline_limit:
            image = images_pb2.Image(blob_id=await self._blobs.put(image.encoded))
        self._journal.append_result(planned.name, image, gives(planned.step), index=index, score=score)


def _has_score(answer: Answer) -> bool:
    return "score" in answer.result.DESCRIPTOR.fields_by_name and answer.result.HasField("score")


def _encoding(planned: PlannedStep) -> images_pb2.OutputOptions:
    """Return how the step's own server is to encode the result."""
    if not planned.taken:
        return planned.step.output
    if operation_name(planned.step) == "convert" and planned.step.output.HasField("bit_depth"):
        return images_pb2.OutputOptions(format="raw", bit_depth=planned.step.output.bit_depth)
    return RAW


def _blamed(error: LimnerError, planned: PlannedStep, inputs: Mapping[str, images_pb2.Image]) -> LimnerError:
    """Add the step's name, and turn fields of the server's request into fields of the caller's."""
    error.metadata["step"] = planned.name
    if isinstance(error, InvalidInput):
        error.violations = tuple(
            replace(violation, field=_caller_field(violation, planned, inputs)) for violation in error.violations
        )
    return error


def _caller_field(violation: FieldViolation, planned: PlannedStep, inputs: Mapping[str, images_pb2.Image]) -> str:
    field = violation.field
    for slot in planned.slots:
        if field == slot.field or field.startswith(f"{slot.field}."):
            if slot.name in inputs:
                return f"inputs[{slot.name}]{field.removeprefix(slot.field)}"
            return f"{planned.path}.{operation_name(planned.step)}.{field}"
    if field == "output" or field.startswith("output."):
        return f"{planned.path}.{field}"
    return f"{planned.path}.{operation_name(planned.step)}.{field}".rstrip(".")
