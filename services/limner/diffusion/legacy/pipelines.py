"""diffusers' pipelines of SD 1 and SDXL, made to be stepped: they stop before the first evaluation and after each, and
show what the UNet saw and said. What they compute is unchanged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from limner.diffusion.legacy.parts import Parts

SEEN = ("latents", "latent_model_input", "noise_pred")
"""What `callback_on_step_end` gets of each evaluation: the latents after it, and what the UNet saw and said."""


class _Stepped:
    """What the four pipelines have in common. A pipeline is one picture's: its scheduler has the picture's state."""

    # The callback may see any variable of the loop that is named here: beside latents, what previews are made of.
    _callback_tensor_inputs = (*SEEN, "prompt_embeds", "negative_prompt_embeds")
    vae: Any
    _latents_device: torch.device
    _vae_lock: threading.Lock
    _begin: Callable[[int], None]

    def set_up(self, device: torch.device, vae_lock: threading.Lock, begin: Callable[[int], None]) -> None:
        """Set where latents are, who may use the VAE, and what is called with the number of steps before the first."""
        self._latents_device, self._vae_lock, self._begin = device, vae_lock, begin

    @property
    def _execution_device(self) -> torch.device:
        """Where latents are. diffusers takes that of any part, and text encoders may be elsewhere."""
        return self._latents_device

    @contextmanager
    def progress_bar(self, iterable: object = None, total: int = 0) -> Iterator[_Silent]:
        """Stand in for the bar that the pipeline enters right before its loop."""
        self._begin(total)
        yield _Silent()

    def _encode_vae_image(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return an image's latents. As diffusers' own, but the VAE, which other pictures use too, stays in the dtype
        that it was loaded in: theirs changes it for the time of the call."""
        with self._vae_lock:
            latents = self.vae.encode(image.to(self.vae.device, self.vae.dtype)).latent_dist.sample(generator)
        return torch.as_tensor(latents).to(image.device, image.dtype) * float(self.vae.config.scaling_factor)


class _Silent:
    def update(self, count: int = 1) -> None:
        """Ignore that a step is done: the callback tells, with more."""


class _Sd1(_Stepped, StableDiffusionPipeline):
    pass


class _Sd1Inpaint(_Stepped, StableDiffusionInpaintPipeline):
    pass


class _Sdxl(_Stepped, StableDiffusionXLPipeline):
    pass


class _SdxlInpaint(_Stepped, StableDiffusionXLInpaintPipeline):
    pass


def encoder(parts: Parts, scheduler: Any) -> Any:
    """Return a pipeline that encodes prompts."""
    return _made(parts, scheduler, edits=True, reads=True)


def stepped(parts: Parts, scheduler: Any, *, edits: bool) -> Any:
    """Return a new pipeline with a scheduler of its own: one that edits a picture, or one that makes one from text
    alone. It has no text encoders and takes encoded prompts: with encoders, it would turn those into their dtype."""
    return _made(parts, scheduler, edits=edits, reads=False)


def _made(parts: Parts, scheduler: Any, *, edits: bool, reads: bool) -> Any:
    shared = {
        "vae": parts.vae,
        "text_encoder": parts.text_encoder if reads else None,
        "tokenizer": parts.tokenizer if reads else None,
        "unet": parts.unet,
        "scheduler": scheduler,
    }
    if parts.family == "sd1":
        made = _Sd1Inpaint if edits else _Sd1
        return made(**shared, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    return (_SdxlInpaint if edits else _Sdxl)(
        **shared,
        text_encoder_2=parts.text_encoder_2 if reads else None,
        tokenizer_2=parts.tokenizer_2 if reads else None,
        force_zeros_for_empty_prompt=parts.force_zeros,
        add_watermarker=False,
    )
