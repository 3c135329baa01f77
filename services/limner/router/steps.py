"""What each kind of step takes, gives, and asks of which server: one table, `OPERATIONS`.

Knows the messages of the model servers and nothing of channels, runs or pixels. A new kind of step is a message in
`router.proto` and a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from limner.v1 import (
    diffusion_pb2,
    diffusion_pb2_grpc,
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

_Request = TypeVar("_Request", bound=Message)


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
    # The pictures, or the mask, in the `result` event; later steps take the first.
    results: Callable[[Any], list[images_pb2.Image]]
    needs: tuple[str, ...] = ()  # fields of the message that must be given


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


def _picture_and_perhaps_mask(message: Any) -> list[Slot]:
    return _picture_and_mask(message) if message.mask else _picture(message)


def _masks(message: Any) -> list[Slot]:
    return [Slot(f"masks[{i}]", name, MASK) for i, name in enumerate(message.masks)]


def _background_kind(message: router_pb2.RemoveBackgroundStep) -> router_pb2.ResultKind.ValueType:
    return MASK if message.options.result == segment_pb2.BACKGROUND_OUTPUT_MASK else IMAGE


def _one_image(result: Any) -> list[images_pb2.Image]:
    return [result.image]


def _one_mask(result: Any) -> list[images_pb2.Image]:
    return [result.mask]


def _all_images(result: Any) -> list[images_pb2.Image]:
    return [result.image, *result.more_images]


def _holding(request: _Request, **pictures: images_pb2.Image) -> _Request:
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


def _edit_request(
    message: router_pb2.EditStep, images: Sequence[images_pb2.Image], output: images_pb2.OutputOptions
) -> diffusion_pb2.EditRequest:
    request = diffusion_pb2.EditRequest(prompt=message.prompt, options=message.options, output=output)
    return _holding(request, **dict(zip(("image", "mask"), images, strict=False)))


OPERATIONS: dict[str, Operation] = {
    "inpaint": Operation(
        server="inpaint",
        slots=_picture_and_mask,
        gives=lambda message: IMAGE,
        method=lambda channel: inpaint_pb2_grpc.InpaintServiceStub(channel).Inpaint,
        request=lambda message, images, output: _holding(
            inpaint_pb2.InpaintRequest(options=message.options, output=output), image=images[0], mask=images[1]
        ),
        results=_one_image,
    ),
    "segment": Operation(
        server="segment",
        slots=_picture,
        gives=lambda message: MASK,
        method=lambda channel: segment_pb2_grpc.SegmentServiceStub(channel).Segment,
        request=lambda message, images, output: _holding(
            segment_pb2.SegmentRequest(options=message.options, output=output), image=images[0]
        ),
        results=_one_mask,
        needs=("options",),
    ),
    "remove_background": Operation(
        server="segment",
        slots=_picture,
        gives=_background_kind,
        method=lambda channel: segment_pb2_grpc.SegmentServiceStub(channel).RemoveBackground,
        request=lambda message, images, output: _holding(
            segment_pb2.RemoveBackgroundRequest(options=message.options, output=output), image=images[0]
        ),
        results=_one_image,
    ),
    "upscale": Operation(
        server="postprocess",
        slots=_picture,
        gives=lambda message: IMAGE,
        method=lambda channel: postprocess_pb2_grpc.PostprocessServiceStub(channel).Upscale,
        request=lambda message, images, output: _holding(
            postprocess_pb2.UpscaleRequest(options=message.options, output=output), image=images[0]
        ),
        results=_one_image,
    ),
    "mask": Operation(
        server="postprocess",
        slots=_masks,
        gives=lambda message: MASK,
        method=lambda channel: postprocess_pb2_grpc.PostprocessServiceStub(channel).EditMask,
        request=_edit_mask_request,
        results=_one_mask,
    ),
    "convert": Operation(
        server="postprocess",
        slots=_picture,
        gives=lambda message: IMAGE,
        method=lambda channel: postprocess_pb2_grpc.PostprocessServiceStub(channel).Convert,
        request=lambda message, images, output: _holding(
            postprocess_pb2.ConvertRequest(output=output), image=images[0]
        ),
        results=_one_image,
    ),
    "generate": Operation(
        server="diffusion",
        slots=lambda message: [],
        gives=lambda message: IMAGE,
        method=lambda channel: diffusion_pb2_grpc.DiffusionServiceStub(channel).Generate,
        request=lambda message, images, output: diffusion_pb2.GenerateRequest(
            prompt=message.prompt, options=message.options, output=output
        ),
        results=_all_images,
        needs=("prompt",),
    ),
    "edit": Operation(
        server="diffusion",
        slots=_picture_and_perhaps_mask,
        gives=lambda message: IMAGE,
        method=lambda channel: diffusion_pb2_grpc.DiffusionServiceStub(channel).Edit,
        request=_edit_request,
        results=_all_images,
    ),
    "outpaint": Operation(
        server="diffusion",
        slots=_picture,
        gives=lambda message: IMAGE,
        method=lambda channel: diffusion_pb2_grpc.DiffusionServiceStub(channel).Outpaint,
        request=lambda message, images, output: _holding(
            diffusion_pb2.OutpaintRequest(prompt=message.prompt, options=message.options, output=output),
            image=images[0],
        ),
        results=_all_images,
        needs=("options",),
    ),
}

# The step that encodes a result which other steps take too: those get it raw, the caller gets it as `output` says.
ENCODE = router_pb2.Step(convert=router_pb2.ConvertStep())
