"""What each kind of step takes, gives, and asks of which server: one table, `OPERATIONS`.

Knows the messages of the model servers and nothing of channels, runs or pixels. A new kind of step is a message in
`router.proto` and a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from limner.v1 import (
    images_pb2,
    inpaint_pb2,
    inpaint_pb2_grpc,
    postprocess_pb2,
    postprocess_pb2_grpc,
    router_pb2,
    segment_pb2,
    segment_pb2_grpc,
)

IMAGE = router_pb2.RESULT_KIND_IMAGE
MASK = router_pb2.RESULT_KIND_MASK
DEFAULT_IMAGE = "source"


@dataclass(frozen=True)
class Slot:
    """One thing that a step takes: `Slot("masks[1]", "dilated", MASK)`."""

    field: str  # where the step names it, within the operation's message; the server's request calls it the same
    name: str  # the input or step named, or the default; empty if it had to be named and wasn't
    takes: router_pb2.ResultKind.ValueType


@dataclass(frozen=True)
class Operation:
    """A row of the table. The operation's message (`router_pb2.InpaintStep`, ...) is the first argument of all."""

    server: str  # the kind of server that does it
    slots: Callable[[Any], list[Slot]]
    gives: Callable[[Any], router_pb2.ResultKind.ValueType]
    # The method on a channel; a call streams a response with the oneof `event`.
    method: Callable[[grpc.aio.Channel], Any]
    # The request, from the pictures in the slots' order and how the result is to be encoded.
    request: Callable[[Any, Sequence[images_pb2.Image], images_pb2.OutputOptions], Any]
    # The picture or mask in the `result` event.
    result: Callable[[Any], images_pb2.Image]
    needs_options: bool = False


def operation_name(step: router_pb2.Step) -> str:
    """Return the operation's field name (`inpaint`), or "" if none is set."""
    return step.WhichOneof("operation") or ""


def operation_of(step: router_pb2.Step) -> Operation:
    """Return a checked step's row of the table."""
    return OPERATIONS[operation_name(step)]


def message_of(step: router_pb2.Step) -> Any:
    """Return a checked step's operation message."""
    return getattr(step, operation_name(step))


def slots_of(step: router_pb2.Step) -> list[Slot]:
    """Return what a checked step takes."""
    return operation_of(step).slots(message_of(step))


def gives(step: router_pb2.Step) -> router_pb2.ResultKind.ValueType:
    """Return what a checked step's result is."""
    return operation_of(step).gives(message_of(step))


def _picture(message: Any) -> list[Slot]:
    return [Slot("image", message.image or DEFAULT_IMAGE, IMAGE)]


def _picture_and_mask(message: Any) -> list[Slot]:
    return [*_picture(message), Slot("mask", message.mask, MASK)]


def _masks(message: Any) -> list[Slot]:
    return [Slot(f"masks[{i}]", name, MASK) for i, name in enumerate(message.masks)]


def _background_kind(message: router_pb2.RemoveBackgroundStep) -> router_pb2.ResultKind.ValueType:
    return MASK if message.options.result == segment_pb2.BACKGROUND_OUTPUT_MASK else IMAGE


def _holding(request: Any, **pictures: images_pb2.Image) -> Any:
    """Return the request with pictures in it. CopyFrom copies; a constructor serialises and parses, which takes many
    times as long for megabytes."""
    for field, picture in pictures.items():
        getattr(request, field).CopyFrom(picture)
    return request


def _edit_mask_request(
    message: router_pb2.MaskStep, images: Sequence[images_pb2.Image], output: images_pb2.OutputOptions
) -> postprocess_pb2.EditMaskRequest:
    request = postprocess_pb2.EditMaskRequest(options=message.options, output=output)
    for image in images:
        request.masks.add().CopyFrom(image)
    return request


OPERATIONS: dict[str, Operation] = {
    "inpaint": Operation(
        server="inpaint",
        slots=_picture_and_mask,
        gives=lambda message: IMAGE,
        method=lambda channel: inpaint_pb2_grpc.InpaintServiceStub(channel).Inpaint,
        request=lambda message, images, output: _holding(
            inpaint_pb2.InpaintRequest(options=message.options, output=output), image=images[0], mask=images[1]
        ),
        result=lambda result: result.image,
    ),
    "segment": Operation(
        server="segment",
        slots=_picture,
        gives=lambda message: MASK,
        method=lambda channel: segment_pb2_grpc.SegmentServiceStub(channel).Segment,
        request=lambda message, images, output: _holding(
            segment_pb2.SegmentRequest(options=message.options, output=output), image=images[0]
        ),
        result=lambda result: result.mask,
        needs_options=True,
    ),
    "remove_background": Operation(
        server="segment",
        slots=_picture,
        gives=_background_kind,
        method=lambda channel: segment_pb2_grpc.SegmentServiceStub(channel).RemoveBackground,
        request=lambda message, images, output: _holding(
            segment_pb2.RemoveBackgroundRequest(options=message.options, output=output), image=images[0]
        ),
        result=lambda result: result.image,
    ),
    "upscale": Operation(
        server="postprocess",
        slots=_picture,
        gives=lambda message: IMAGE,
        method=lambda channel: postprocess_pb2_grpc.PostprocessServiceStub(channel).Upscale,
        request=lambda message, images, output: _holding(
            postprocess_pb2.UpscaleRequest(options=message.options, output=output), image=images[0]
        ),
        result=lambda result: result.image,
    ),
    "mask": Operation(
        server="postprocess",
        slots=_masks,
        gives=lambda message: MASK,
        method=lambda channel: postprocess_pb2_grpc.PostprocessServiceStub(channel).EditMask,
        request=_edit_mask_request,
        result=lambda result: result.mask,
    ),
    "convert": Operation(
        server="postprocess",
        slots=_picture,
        gives=lambda message: IMAGE,
        method=lambda channel: postprocess_pb2_grpc.PostprocessServiceStub(channel).Convert,
        request=lambda message, images, output: _holding(
            postprocess_pb2.ConvertRequest(output=output), image=images[0]
        ),
        result=lambda result: result.image,
    ),
}

# The step that encodes a result which other steps take too: those get it raw, the caller gets it as `output` says.
ENCODE = router_pb2.Step(convert=router_pb2.ConvertStep())
