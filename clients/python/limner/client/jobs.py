"""What is asked for most, as pipelines: each function here writes one and runs nothing.

`Client.erase` and its like take the same arguments and run the job.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

from limner.client.making import Making, generate_options
from limner.client.pictures import ImageSource
from limner.v1 import diffusion_pb2, images_pb2, inpaint_pb2, postprocess_pb2, router_pb2, segment_pb2

Point = tuple[float, float]
Rectangle = tuple[int, int, int, int]

# An object found by clicks ends at its edge; what it leaves there (soft edges, a rim of light) has to go with it.
FOUND_GROW_PX = 8
FOUND_FEATHER_PX = 4


@dataclass(frozen=True)
class Job:
    """A pipeline, what goes in, and the step whose result is wanted."""

    pipeline: router_pb2.Pipeline
    inputs: Mapping[str, ImageSource]
    result: str


def erase(
    image: ImageSource,
    *,
    mask: ImageSource | None = None,
    clicks: Sequence[Point] = (),
    avoid: Sequence[Point] = (),
    boxes: Sequence[Rectangle] = (),
    grow: int | None = None,
    feather: int | None = None,
    model: str | None = None,
    strategy: str | None = None,
    seed: int | None = None,
    format: str | None = None,  # noqa: A002  (the contract's word)
    quality: int | None = None,
) -> Job:
    """Removes what the mask covers, or the object that clicks and boxes point at.

    `clicks` and `avoid` are points (x, y) on and off the object, `boxes` are (x, y, width, height), all in pixels of
    the upright picture. The mask grows by `grow` pixels and gets an edge that is soft over `feather` pixels; by default
    not at all if it was given, by 8 and 4 if the object was found. `strategy` is auto, original, resize or crop.
    """
    steps, inputs, masked = _area(image, mask, clicks, avoid, boxes, grow, feather)
    fill = inpaint_pb2.InpaintOptions(model=model, seed=seed)
    if strategy is not None:
        fill.strategy = _strategy(strategy)
    steps.append(
        router_pb2.Step(
            name="erase",
            inpaint=router_pb2.InpaintStep(mask=masked, options=fill),
            output=_output(format, quality),
        )
    )
    return Job(router_pb2.Pipeline(steps=steps, outputs=["erase"]), inputs, "erase")


def segment(
    image: ImageSource,
    *,
    clicks: Sequence[Point] = (),
    avoid: Sequence[Point] = (),
    boxes: Sequence[Rectangle] = (),
    grow: int | None = None,
    feather: int | None = None,
    model: str | None = None,
    format: str | None = None,  # noqa: A002
) -> Job:
    """Masks the object that clicks and boxes point at: grey, 255 on the object, a PNG unless `format` says otherwise.

    The other arguments are those of `erase`.
    """
    if not clicks and not boxes:
        raise ValueError("say where the object is: at least one click or box")
    steps = [router_pb2.Step(name="segment", segment=_segment_step(clicks, avoid, boxes, model))]
    if operations := _soften(grow, feather):
        options = postprocess_pb2.EditMaskOptions(operations=operations)
        steps.append(router_pb2.Step(name="soften", mask=router_pb2.MaskStep(masks=["segment"], options=options)))
    steps[-1].output.CopyFrom(_output(format, None))
    last = steps[-1].name
    return Job(router_pb2.Pipeline(steps=steps, outputs=[last]), {"source": image}, last)


def upscale(
    image: ImageSource,
    scale: float | None = None,
    *,
    model: str | None = None,
    format: str | None = None,  # noqa: A002
    quality: int | None = None,
) -> Job:
    """Enlarges (or reduces) to `scale` times the sides, 0.1 to 16, by default 2."""
    options = postprocess_pb2.UpscaleOptions(model=model, scale=scale)
    step = router_pb2.Step(name="upscale", upscale=router_pb2.UpscaleStep(options=options))
    return _single(step, image, format, quality)


def remove_background(
    image: ImageSource,
    *,
    mask: bool = False,
    model: str | None = None,
    format: str | None = None,  # noqa: A002
    quality: int | None = None,
) -> Job:
    """Makes the background transparent; with `mask`, gives the foreground as a mask instead."""
    options = segment_pb2.RemoveBackgroundOptions(model=model)
    if mask:
        options.result = segment_pb2.BACKGROUND_OUTPUT_MASK
    step = router_pb2.Step(name="remove-background", remove_background=router_pb2.RemoveBackgroundStep(options=options))
    return _single(step, image, format, quality)


def convert(
    image: ImageSource,
    format: str | None = None,  # noqa: A002
    *,
    quality: int | None = None,
    bit_depth: int | None = None,
) -> Job:
    """Encodes anew, as `png`, `jpeg`, `webp`, `tiff` or `bmp`, with 8 or 16 bits a channel."""
    step = router_pb2.Step(name="convert", convert=router_pb2.ConvertStep())
    return _single(step, image, format, quality, bit_depth)


def generate(
    prompt: str,
    *,
    format: str | None = None,  # noqa: A002
    quality: int | None = None,
    **making: Unpack[Making],
) -> Job:
    """Makes pictures that show what the prompt says, PNG files unless `format` says otherwise.

    `making` says how: model, negative_prompt, width, height, steps, guidance, seed, count, sampler, shift, text_length,
    truncate, skip_layers, step_cache, loras, preview_interval and weight, as in `limner.client.making.Making`.
    """
    step = router_pb2.GenerateStep(prompt=prompt, options=generate_options(making))
    steps = [router_pb2.Step(name="generate", generate=step, output=_output(format, quality))]
    return Job(router_pb2.Pipeline(steps=steps, outputs=["generate"]), {}, "generate")


def edit(
    image: ImageSource,
    prompt: str = "",
    *,
    mask: ImageSource | None = None,
    clicks: Sequence[Point] = (),
    avoid: Sequence[Point] = (),
    boxes: Sequence[Rectangle] = (),
    grow: int | None = None,
    feather: int | None = None,
    strength: float | None = None,
    crop_margin: int | None = None,
    format: str | None = None,  # noqa: A002
    quality: int | None = None,
    **making: Unpack[Making],
) -> Job:
    """Makes anew what the mask covers, or the object that clicks and boxes point at, as `erase` takes them; without
    any, changes the whole picture, as far as `strength` (over 0, to 1) says. Without a prompt it gives variations.

    With a mask the model sees `crop_margin` pixels around it. `making` is that of `generate`.
    """
    options = diffusion_pb2.EditOptions(
        generate=generate_options(making), strength=strength, crop_margin_px=crop_margin
    )
    step = router_pb2.EditStep(prompt=prompt, options=options)
    steps: list[router_pb2.Step] = []
    inputs = {"source": image}
    if mask is not None or clicks or boxes:
        steps, inputs, step.mask = _area(image, mask, clicks, avoid, boxes, grow, feather)
    elif avoid or grow or feather:
        raise ValueError("points to avoid, grow and feather go with a mask, clicks or boxes")
    steps.append(router_pb2.Step(name="edit", edit=step, output=_output(format, quality)))
    return Job(router_pb2.Pipeline(steps=steps, outputs=["edit"]), inputs, "edit")


def outpaint(
    image: ImageSource,
    prompt: str = "",
    *,
    left: int = 0,
    top: int = 0,
    right: int = 0,
    bottom: int = 0,
    feather: int | None = None,
    strength: float | None = None,
    format: str | None = None,  # noqa: A002
    quality: int | None = None,
    **making: Unpack[Making],
) -> Job:
    """Extends the picture by so many pixels on its sides. The seam is blended over `feather` pixels of the picture, 16
    by default; `strength` is how far the result may be from a plain continuation, over 0, to 1. `making` is that of
    `generate`.
    """
    if not (left or top or right or bottom):
        raise ValueError("say how far to extend the picture: left, top, right or bottom")
    options = diffusion_pb2.OutpaintOptions(
        generate=generate_options(making),
        left_px=left,
        top_px=top,
        right_px=right,
        bottom_px=bottom,
        feather_px=feather,
        strength=strength,
    )
    step = router_pb2.Step(name="outpaint", outpaint=router_pb2.OutpaintStep(prompt=prompt, options=options))
    return _single(step, image, format, quality)


def present_as(method: Callable[..., object], write: Callable[..., Job], gives: str = "bytes") -> None:
    """Gives a client's method the name, documentation and signature of the function here that it runs."""
    signature = inspect.signature(write)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [itself, *signature.parameters.values()]
    method.__name__, method.__doc__ = write.__name__, write.__doc__
    method.__dict__["__signature__"] = signature.replace(parameters=parameters, return_annotation=gives)


def _single(
    step: router_pb2.Step,
    image: ImageSource,
    format: str | None,  # noqa: A002
    quality: int | None,
    bit_depth: int | None = None,
) -> Job:
    step.output.CopyFrom(_output(format, quality, bit_depth))
    return Job(router_pb2.Pipeline(steps=[step], outputs=[step.name]), {"source": image}, step.name)


def _output(format: str | None, quality: int | None, bit_depth: int | None = None) -> images_pb2.OutputOptions:  # noqa: A002
    return images_pb2.OutputOptions(format=format, quality=quality, bit_depth=bit_depth)


def _area(
    image: ImageSource,
    mask: ImageSource | None,
    clicks: Sequence[Point],
    avoid: Sequence[Point],
    boxes: Sequence[Rectangle],
    grow: int | None,
    feather: int | None,
) -> tuple[list[router_pb2.Step], dict[str, ImageSource], str]:
    """The steps that make a mask, all that goes in, and the mask's name."""
    if (mask is None) == (not clicks and not boxes):
        raise ValueError("say where: by a mask, or by clicks and boxes, not both")
    steps, inputs, masked = [], {"source": image}, "mask"
    if mask is not None:
        if avoid:
            raise ValueError("points to avoid go with clicks and boxes, not with a mask")
        inputs["mask"] = mask
    else:
        steps.append(router_pb2.Step(name="segment", segment=_segment_step(clicks, avoid, boxes)))
        masked = "segment"
        grow = FOUND_GROW_PX if grow is None else grow
        feather = FOUND_FEATHER_PX if feather is None else feather
    if operations := _soften(grow, feather):
        options = postprocess_pb2.EditMaskOptions(operations=operations)
        steps.append(router_pb2.Step(name="soften", mask=router_pb2.MaskStep(masks=[masked], options=options)))
        masked = "soften"
    return steps, inputs, masked


def _segment_step(
    clicks: Sequence[Point], avoid: Sequence[Point], boxes: Sequence[Rectangle], model: str | None = None
) -> router_pb2.SegmentStep:
    for x, y, width, height in boxes:
        if min(x, y) < 0 or min(width, height) < 1:
            raise ValueError(f"box {x},{y},{width},{height}: give x and y from 0, a width and a height from 1")
    on, off = segment_pb2.CLICK_LABEL_POSITIVE, segment_pb2.CLICK_LABEL_NEGATIVE
    options = segment_pb2.SegmentOptions(
        model=model,
        clicks=[segment_pb2.Click(x_px=x, y_px=y, label=on) for x, y in clicks]
        + [segment_pb2.Click(x_px=x, y_px=y, label=off) for x, y in avoid],
        boxes=[images_pb2.Box(x_px=x, y_px=y, width_px=width, height_px=height) for x, y, width, height in boxes],
    )
    return router_pb2.SegmentStep(options=options)


def _soften(grow: int | None, feather: int | None) -> list[postprocess_pb2.MaskOperation]:
    operations = []
    if grow:
        operations.append(postprocess_pb2.MaskOperation(grow=postprocess_pb2.GrowMask(radius_px=grow)))
    if feather:
        operations.append(postprocess_pb2.MaskOperation(feather=postprocess_pb2.FeatherMask(radius_px=feather)))
    return operations


def _strategy(name: str) -> inpaint_pb2.InpaintStrategy.ValueType:
    try:
        return inpaint_pb2.InpaintStrategy.Value(f"INPAINT_STRATEGY_{name.upper()}")
    except ValueError:
        raise ValueError(f"no strategy {name!r}; there are: auto, original, resize, crop") from None
