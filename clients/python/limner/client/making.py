"""How pictures are made from text, in the words of helpers and commands, and as the contract's GenerateOptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from limner.v1 import diffusion_pb2


class Making(TypedDict, total=False):
    """What can be said of how pictures are made. What isn't, or is None, is the model's own default."""

    model: str | None
    negative_prompt: str | None  # what the picture does not show
    width: int | None  # pixels, a multiple of 16 that the model takes
    height: int | None
    steps: int | None  # of the sampler
    guidance: float | None  # how strongly the prompt is followed; 1: not at all beyond what the model does by itself
    seed: int | None  # of the first picture; the next one has the next
    count: int | None  # pictures, 1 to 16
    sampler: str | None
    shift: float | None  # of the schedule towards noise
    text_length: int | None  # tokens that the long text encoder reads
    truncate: bool  # cut prompts that are too long, instead of failing
    skip_layers: (
        Sequence[int] | diffusion_pb2.SkipLayerGuidance | None
    )  # for skip-layer guidance; empty: the usual ones
    step_cache: int | diffusion_pb2.StepCache | None  # compute one step of so many, and predict the others
    loras: Mapping[str, float] | None  # how strongly each is applied, by name
    preview_interval: int | None  # steps between previews
    weight: float | None  # the call's share of the device in proportion to others


_FIELDS = {
    "width": "width_px",
    "height": "height_px",
    "steps": "step_count",
    "guidance": "guidance_scale",
    "count": "image_count",
    "shift": "schedule_shift",
    "truncate": "truncate_prompt",
    "skip_layers": "skip_layer_guidance",
}


def generate_options(making: Mapping[str, Any]) -> diffusion_pb2.GenerateOptions:
    """The message for a `Making`. Raises TypeError for what a Making has not, ValueError for impossible numbers."""
    options = diffusion_pb2.GenerateOptions()
    for name, value in making.items():
        if name not in Making.__annotations__:
            raise TypeError(f"unexpected argument {name!r}; there are: {', '.join(Making.__annotations__)}")
        if value is None:
            continue
        if name == "skip_layers":
            options.skip_layer_guidance.CopyFrom(_skip_layer_guidance(value))
        elif name == "step_cache":
            options.step_cache.CopyFrom(_step_cache(value))
        elif name == "loras":
            for lora, scale in value.items():
                options.loras.add(name=lora, scale=scale)
        else:
            _set(options, name, value)
    return options


def making_of(options: diffusion_pb2.GenerateOptions) -> Making:
    """What a message says, the other way round."""
    given = {field.name for field, _ in options.ListFields()}
    fields = {name: _FIELDS.get(name, name) for name in Making.__annotations__}
    making = {name: getattr(options, field) for name, field in fields.items() if field in given}
    if options.loras:
        making["loras"] = {lora.name: lora.scale if lora.HasField("scale") else 1.0 for lora in options.loras}
    return cast("Making", making)


def _set(options: diffusion_pb2.GenerateOptions, name: str, value: Any) -> None:
    try:
        setattr(options, _FIELDS.get(name, name), value)
    except ValueError:
        raise ValueError(f"{name} can't be {value}") from None


def _skip_layer_guidance(
    layers: Sequence[int] | diffusion_pb2.SkipLayerGuidance,
) -> diffusion_pb2.SkipLayerGuidance:
    if isinstance(layers, diffusion_pb2.SkipLayerGuidance):
        return layers
    return diffusion_pb2.SkipLayerGuidance(layers=layers)


def _step_cache(interval: int | diffusion_pb2.StepCache) -> diffusion_pb2.StepCache:
    return interval if isinstance(interval, diffusion_pb2.StepCache) else diffusion_pb2.StepCache(interval=interval)
