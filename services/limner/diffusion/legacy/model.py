"""SD 1 and SDXL for the engine: each picture is one run of diffusers' own pipeline, stepped. Knows no protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from limner.core.errors import BadArgument, FieldViolation
from limner.diffusion.legacy import frugal
from limner.diffusion.legacy.parts import Parts
from limner.diffusion.legacy.pipelines import encoder
from limner.diffusion.legacy.preview import Seen, clean_latents, colours
from limner.diffusion.legacy.row import LegacyRow
from limner.diffusion.legacy.samplers import MOST_STEPS, Samplers
from limner.diffusion.memory import shortage_told
from limner.diffusion.model import Pixels, Request, Row
from limner.diffusion.parameters import Parameters
from limner.diffusion.variant import Variant

_LARGEST_ROW = 2  # one picture, with guidance


class LegacyModel:
    """See `limner.diffusion.model.Model`. Rows are advanced alone, each on the thread of its own pipeline; the networks
    are shared, and the schedulers, which hold a picture's state, are not.

    Masks are taken as 0 or 1, from 0.5 on, as the pipelines do. A model of 4 channels makes pictures from text alone
    too, and keeps what isn't masked by putting it back after each step.
    """

    def __init__(self, parts: Parts, variant: Variant) -> None:
        self._parts = parts
        self._variant = variant
        self._encoding = threading.Lock()  # tokenizers keep settings of a call
        self._vae_lock = threading.Lock()
        self._samplers = Samplers(parts.scheduler)
        self._encoder = encoder(parts, self._samplers.scheduler("DDIM"))
        frugal.halve_when_short(parts.unet, parts.device)
        self._alphas = self._encoder.scheduler.alphas_cumprod.float().cpu()

    def prepare(self, request: Request, check: Callable[[], None]) -> Sequence[Row]:
        """Return a row for each picture. Raises BadArgument for what these families can't do."""
        parameters = request.parameters
        self._refuse(request)
        call: dict[str, Any] = self._texts(parameters)
        call |= {
            "width": parameters.width,
            "height": parameters.height,
            "num_inference_steps": parameters.step_count,
            "guidance_scale": parameters.guidance_scale,
        }
        if request.image is not None:
            mask = Image.fromarray(_mask(request))
            call |= {"image": Image.fromarray(request.image), "mask_image": mask, "strength": parameters.strength}
        rows: list[LegacyRow] = []
        try:
            for index in range(parameters.image_count):
                check()
                seeded = {"generator": torch.Generator().manual_seed(parameters.seed + index)}
                rows.append(
                    LegacyRow(
                        self._parts,
                        self._samplers.scheduler(parameters.sampler),
                        call | seeded,
                        edits=request.image is not None,
                        vae_lock=self._vae_lock,
                    )
                )
                with self._memory("encode the picture"):
                    rows[-1].begin()
        except BaseException:
            for row in rows:
                row.close()
            raise
        return rows

    def most_at_once(self, bucket: Hashable) -> int:
        return _LARGEST_ROW

    def advance(self, rows: Sequence[Row]) -> Sequence[Exception | None]:
        return [self._advance(cast(LegacyRow, row)) for row in rows]

    def preview(self, row: Row) -> Callable[[], Pixels] | None:
        seen = cast(LegacyRow, row).seen
        return partial(self._paint, seen) if seen else None

    @torch.no_grad()
    def decode(self, row: Row) -> Pixels:
        latents = cast(LegacyRow, row).latents
        if latents is None:
            raise ValueError("a row is decoded whose steps are not done, or that was closed")
        vae = self._parts.vae
        with self._memory("decode the picture"), self._vae_lock:
            scaled = _unscaled(latents.to(vae.device, vae.dtype), vae.config)
            pixels = frugal.decode(vae, scaled, self._parts.device)[0].float()
        # As diffusers' image processor: from [-1, 1] to the nearest of 256 values.
        values = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return np.ascontiguousarray(values.permute(1, 2, 0).cpu().numpy())

    def _advance(self, row: LegacyRow) -> Exception | None:
        try:
            with self._memory(f"take step {row.step + 1}"):
                row.advance()
        except Exception as error:
            return error
        return None

    def _paint(self, seen: Seen) -> Pixels:
        kind = self._parts.scheduler.get("prediction_type", "epsilon")
        return colours(clean_latents(seen, self._alphas, kind), self._parts.family)

    @torch.no_grad()
    def _texts(self, parameters: Parameters) -> dict[str, Any]:
        """Return the prompts, encoded once for all pictures, under the names of the pipelines' arguments."""
        with self._encoding:
            if not parameters.truncate_prompt:
                self._check_length(parameters.prompt, "prompt")
                self._check_length(parameters.negative_prompt, "options.negative_prompt")
            encoded = self._encoder.encode_prompt(
                prompt=parameters.prompt,
                device=self._parts.text_encoder.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=parameters.guided,
                # SDXL was trained with zeros for no prompt, which is what None stands for there.
                negative_prompt=parameters.negative_prompt or None,
            )
        names = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
        return {
            name: None if each is None else each.to(self._parts.device, self._parts.dtype)
            for name, each in zip(names, encoded, strict=False)  # SD 1 has two
        }

    def _check_length(self, prompt: str, field: str) -> None:
        for tokenizer in filter(None, (self._parts.tokenizer, self._parts.tokenizer_2)):
            count, limit = len(tokenizer(prompt, verbose=False).input_ids), tokenizer.model_max_length
            if count > limit:
                raise BadArgument(
                    f"{field} has {count} tokens, with those that mark its ends, and the model reads {limit}: shorten "
                    "it, or set truncate_prompt to have it cut",
                    field=field,
                    metadata={"actual": str(count), "limit": str(limit)},
                )

    def _refuse(self, request: Request) -> None:
        """Raise BadArgument with everything that is asked for and isn't to be had."""
        parameters, name = request.parameters, self._variant.name
        faults = [FieldViolation(*each) for each in _faults(parameters, request.image is not None)]
        if request.image is None and self._parts.inpaints:
            faults.append(FieldViolation("image", f"{name} only edits: give it a picture"))
        if faults:
            told = "; ".join(f"{each.field}: {each.description}" for each in faults)
            raise BadArgument(f"{name} can't do this: {told}", violations=faults)

    def _memory(self, doing: str) -> AbstractContextManager[None]:
        return shortage_told(f"{doing} with {self._variant.name}", self._parts.device)


def _faults(parameters: Parameters, edits: bool) -> Iterator[tuple[str, str]]:
    if parameters.loras:
        yield "options.loras", "LoRAs are for SD3 models here"
    if parameters.skip_layers is not None:
        yield "options.skip_layers", "skip-layer guidance is for SD3 models"
    if parameters.step_cache is not None:
        yield "options.step_cache", "predicted steps are for SD3 models"
    if (most := MOST_STEPS.get(parameters.sampler, parameters.step_count)) < parameters.step_count:
        yield "options.step_count", f"is {parameters.step_count}, and {parameters.sampler} takes at most {most}"
    if edits and int(parameters.step_count * parameters.strength) < 1:
        least = np.ceil(100 / parameters.step_count) / 100
        yield (
            "options.strength",
            f"is {parameters.strength:g}, which leaves none of {parameters.step_count} steps; give at least {least:g}, "
            "or more steps",
        )


def _mask(request: Request) -> Pixels:
    """Return what is replaced, (height, width) uint8, 255 where it is; all of it if there is no mask."""
    if request.mask is None:
        return np.full((request.parameters.height, request.parameters.width), 255, np.uint8)
    mask: Pixels = np.rint(request.mask * np.float32(255)).astype(np.uint8)
    return mask


def _unscaled(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """Return latents as the VAE has them."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    scaled: torch.Tensor = latents / config.scaling_factor
    if mean is None or std is None:
        return scaled
    return scaled * latents.new_tensor(std).view(1, -1, 1, 1) + latents.new_tensor(mean).view(1, -1, 1, 1)
