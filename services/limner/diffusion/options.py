"""What requests say of how a picture is made: checked against what the model takes, completed by its defaults, and told
again in Finished. Knows the protos, and no pixels."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator

from google.protobuf.message import Message

from limner.core.errors import FieldViolation
from limner.core.geometry import Size
from limner.core.seed import SEED_LIMIT
from limner.diffusion import sizes
from limner.diffusion.parameters import LoraUse, Parameters, SkipLayers, StepCache
from limner.diffusion.sd3.samplers import TURBO_SHIFT, TURBO_STEPS
from limner.diffusion.variant import Variant
from limner.v1 import diffusion_pb2

# The protos' ranges, both ends included but for those of ABOVE, whose numbers must be greater than the first.
RANGES = {
    "width_px": (1, 16384),
    "height_px": (1, 16384),
    "step_count": (1, 1000),
    "guidance_scale": (1, 50),
    "image_count": (1, 16),
    "schedule_shift": (0.1, 20),
    "preview_interval": (1, 1000),
    "weight": (0.1, 10),
    "strength": (0, 1),
    "crop_margin_px": (0, 4096),
    "left_px": (0, 4096),
    "top_px": (0, 4096),
    "right_px": (0, 4096),
    "bottom_px": (0, 4096),
    "feather_px": (0, 512),
    "skip_layer_guidance.scale": (0, 20),
    "skip_layer_guidance.start": (0, 1),
    "skip_layer_guidance.stop": (0, 1),
    "step_cache.interval": (2, 8),
    "step_cache.order": (0, 2),
    "step_cache.warm_up": (1, 1000),
    "loras.scale": (-10, 10),
}
ABOVE = ("strength", "skip_layer_guidance.scale")
SD3_ONLY = ("schedule_shift", "text_length", "skip_layer_guidance", "loras", "step_cache")
LEAST_TEXT_LENGTH = 16
MOST_LORAS = 8
MOST_PROMPT = 1 << 15  # characters; no text encoder reads more than some thousands
TURBO = "turbo"  # the one sampler whose schedule is given


def prompt_faults(prompt: str, field: str) -> Iterator[FieldViolation]:
    """Yield what is wrong with a prompt, whatever the model."""
    if len(prompt) > MOST_PROMPT:
        yield FieldViolation(field, f"is {len(prompt)} characters long; give at most {MOST_PROMPT}")


def range_faults(options: Message, field: str, name: str = "") -> Iterator[FieldViolation]:
    """Yield which of a message's numbers are not in the protos' ranges; `field` is the path to it in the request, and
    `name` its own where the ranges have it by that."""
    for descriptor, value in options.ListFields():
        key = f"{name}.{descriptor.name}" if name else descriptor.name
        if key not in RANGES:
            continue
        low, high = RANGES[key]
        if not low <= value <= high or (key in ABOVE and value == low):
            what = f"more than {low:g}, up to {high:g}" if key in ABOVE else f"{low:g} to {high:g}"
            yield FieldViolation(f"{field}.{descriptor.name}", f"is {value:g}; give {what}")


def option_faults(asked: diffusion_pb2.GenerateOptions, variant: Variant, field: str) -> Iterator[FieldViolation]:
    """Yield everything that a model does not take, sizes aside. `field` is the path to the options."""
    yield from range_faults(asked, field)
    yield from prompt_faults(asked.negative_prompt, f"{field}.negative_prompt")
    if asked.HasField("sampler") and asked.sampler not in variant.samplers:
        names = {name.lower(): name for name in variant.samplers}
        near = difflib.get_close_matches(asked.sampler.lower(), names, n=1)
        meant = f"did you mean {names[near[0]]!r}? " if near else ""
        yield FieldViolation(
            f"{field}.sampler",
            f"is {asked.sampler!r}; {meant}{variant.name} takes: {', '.join(variant.samplers)}",
        )
    if asked.HasField("step_count") and _sampler(asked, variant) == TURBO and asked.step_count != TURBO_STEPS:
        yield FieldViolation(
            f"{field}.step_count",
            f"is {asked.step_count}; the sampler {TURBO} has {TURBO_STEPS} steps, others take any number",
        )
    if asked.HasField("schedule_shift") and _sampler(asked, variant) == TURBO and asked.schedule_shift != TURBO_SHIFT:
        yield FieldViolation(
            f"{field}.schedule_shift",
            f"is {asked.schedule_shift:g}; the sampler {TURBO} has {TURBO_SHIFT:g}, others take any",
        )
    if asked.HasField("seed") and asked.seed + _image_count(asked) > 2 * SEED_LIMIT:
        yield FieldViolation(f"{field}.seed", f"is {asked.seed}; the seeds of the images after it pass 2^64 - 1")
    if variant.family != "sd3":
        for name in SD3_ONLY:
            if _is_given(asked, name):
                yield FieldViolation(f"{field}.{name}", f"is for SD3 models, which {variant.name} is not; leave it out")
        return
    if asked.HasField("text_length") and not LEAST_TEXT_LENGTH <= asked.text_length <= variant.max_text_length:
        yield FieldViolation(
            f"{field}.text_length", f"is {asked.text_length}; give {LEAST_TEXT_LENGTH} to {variant.max_text_length}"
        )
    yield from range_faults(asked.step_cache, f"{field}.step_cache", "step_cache")
    if asked.HasField("skip_layer_guidance"):
        yield from _skip_faults(asked.skip_layer_guidance, variant, f"{field}.skip_layer_guidance")
    if len(asked.loras) > MOST_LORAS:
        yield FieldViolation(f"{field}.loras", f"are {len(asked.loras)}; give at most {MOST_LORAS}")
    for index, lora in enumerate(asked.loras):
        yield from range_faults(lora, f"{field}.loras[{index}]", "loras")
        if not lora.name:
            yield FieldViolation(f"{field}.loras[{index}].name", "is missing; give a LoRA's name")


def size_faults(asked: diffusion_pb2.GenerateOptions, variant: Variant, field: str) -> Iterator[FieldViolation]:
    """Yield what is wrong with the size of a picture that is made from text alone; nothing for sides that aren't in
    the ranges, which says enough."""
    size = size_of(asked, variant)
    low, high = RANGES["width_px"]
    if not (low <= size.width <= high and low <= size.height <= high):
        return
    if wrong := sizes.fault(size, variant):
        given = "width_px" if asked.HasField("width_px") or not asked.HasField("height_px") else "height_px"
        yield FieldViolation(f"{field}.{given}", wrong)


def size_of(asked: diffusion_pb2.GenerateOptions, variant: Variant) -> Size:
    """Return the size that is asked for, with the usual sides for those that are not."""
    return Size(
        asked.width_px if asked.HasField("width_px") else variant.width,
        asked.height_px if asked.HasField("height_px") else variant.height,
    )


def parameters_of(
    asked: diffusion_pb2.GenerateOptions, variant: Variant, *, prompt: str, size: Size, strength: float, seed: int
) -> Parameters:
    """Return options without faults with every default filled in."""
    sampler = _sampler(asked, variant)
    step_count, shift = (TURBO_STEPS, TURBO_SHIFT) if sampler == TURBO else (variant.step_count, variant.shift)
    return Parameters(
        prompt=prompt,
        negative_prompt=asked.negative_prompt,
        width=size.width,
        height=size.height,
        step_count=asked.step_count if asked.HasField("step_count") else step_count,
        guidance_scale=asked.guidance_scale if asked.HasField("guidance_scale") else variant.guidance_scale,
        strength=strength,
        sampler=sampler,
        shift=asked.schedule_shift if asked.HasField("schedule_shift") else shift,
        text_length=asked.text_length if asked.HasField("text_length") else variant.text_length,
        truncate_prompt=asked.truncate_prompt,
        skip_layers=_skip_layers(asked.skip_layer_guidance) if asked.HasField("skip_layer_guidance") else None,
        step_cache=_step_cache(asked.step_cache) if asked.HasField("step_cache") else None,
        loras=tuple(LoraUse(each.name, each.scale if each.HasField("scale") else 1.0) for each in asked.loras),
        seed=seed,
        image_count=_image_count(asked),
    )


def told(parameters: Parameters, variant: Variant) -> dict[str, str]:
    """Return the parameters as texts by the names of the options, for Finished: numbers as in JSON, and messages as
    protobuf's JSON mapping has them with the protos' names. What a family does not have is left out."""
    texts = {
        "prompt": parameters.prompt,
        "negative_prompt": parameters.negative_prompt,
        "width_px": number(parameters.width),
        "height_px": number(parameters.height),
        "step_count": number(parameters.step_count),
        "guidance_scale": number(parameters.guidance_scale),
        "sampler": parameters.sampler,
        "image_count": number(parameters.image_count),
        "truncate_prompt": "true" if parameters.truncate_prompt else "",
    }
    if variant.family == "sd3":
        texts["text_length"] = number(parameters.text_length)
    if parameters.shift is not None:
        texts["schedule_shift"] = number(parameters.shift)
    if (skip := parameters.skip_layers) is not None:
        texts["skip_layer_guidance"] = json.dumps(
            {"scale": skip.scale, "layers": skip.layers, "start": skip.start, "stop": skip.stop}
        )
    if (cache := parameters.step_cache) is not None:
        texts["step_cache"] = json.dumps({"interval": cache.interval, "order": cache.order, "warm_up": cache.warm_up})
    if parameters.loras:
        texts["loras"] = json.dumps([{"name": each.name, "scale": each.scale} for each in parameters.loras])
    return {name: text for name, text in texts.items() if text}


def number(value: float) -> str:
    """Return a number as a text: the shortest that means the same."""
    return repr(int(value) if float(value).is_integer() else value)


def _skip_faults(asked: diffusion_pb2.SkipLayerGuidance, variant: Variant, field: str) -> Iterator[FieldViolation]:
    yield from range_faults(asked, field, "skip_layer_guidance")
    skip = _skip_layers(asked)
    if not skip.start < skip.stop:
        yield FieldViolation(f"{field}.stop", f"is {skip.stop:g}, where it starts at {skip.start:g}; give more")
    if beyond := [layer for layer in skip.layers if layer >= variant.layer_count]:
        are = "has" if asked.layers else f"is {', '.join(map(str, skip.layers))} by default, with"
        last = variant.layer_count - 1
        yield FieldViolation(f"{field}.layers", f"{are} {beyond[0]}; {variant.name} has the layers 0 to {last}")


def _skip_layers(asked: diffusion_pb2.SkipLayerGuidance) -> SkipLayers:
    usual = SkipLayers()
    return SkipLayers(
        scale=asked.scale if asked.HasField("scale") else usual.scale,
        layers=tuple(sorted(set(asked.layers))) or usual.layers,
        start=asked.start if asked.HasField("start") else usual.start,
        stop=asked.stop if asked.HasField("stop") else usual.stop,
    )


def _step_cache(asked: diffusion_pb2.StepCache) -> StepCache:
    usual = StepCache()
    return StepCache(
        interval=asked.interval if asked.HasField("interval") else usual.interval,
        order=asked.order if asked.HasField("order") else usual.order,
        warm_up=asked.warm_up if asked.HasField("warm_up") else usual.warm_up,
    )


def _sampler(asked: diffusion_pb2.GenerateOptions, variant: Variant) -> str:
    return asked.sampler if asked.HasField("sampler") else variant.sampler


def _image_count(asked: diffusion_pb2.GenerateOptions) -> int:
    return asked.image_count if asked.HasField("image_count") else 1


def _is_given(asked: diffusion_pb2.GenerateOptions, name: str) -> bool:
    return any(descriptor.name == name for descriptor, _ in asked.ListFields())
