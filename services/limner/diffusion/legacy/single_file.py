"""Reads the single files of SD 1 and SDXL: tensors under the names of the code that they were published with (latent
diffusion, OpenCLIP), into diffusers' and transformers' classes. Configurations of the published architectures are
beside this file, so that nothing else is asked for. Knows no device.

Names are turned by diffusers' own converters; their `from_single_file` would ask the hub for configurations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from limner.core.errors import ModelNotInstalled
from limner.diffusion.variant import Family

_CONFIGS = Path(__file__).parent / "configs"
_CLIP_CONFIGS = Path(__file__).parent.parent / "sd3" / "configs"  # SD3 reads the same two encoders
_OPEN_CLIP = "conditioner.embedders.1.model."
_NAMED = 5  # keys that an error names

M = TypeVar("M", bound=nn.Module)


def config(family: Family) -> dict[str, Any]:
    """Return the configurations of a published architecture: `unet`, `vae`, `scheduler`, and `text_encoder` and
    `text_encoder_2`."""
    found: dict[str, Any] = json.loads((_CONFIGS / f"{family}.json").read_text(encoding="utf-8"))
    for part, file in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        found[part] = json.loads((_CLIP_CONFIGS / f"{file}.json").read_text(encoding="utf-8"))
    return found


class SingleFile:
    """SingleFile(path).unet(config("sdxl")["unet"], torch.float16)

    Networks are on the CPU, in evaluation mode. Tensors stay on the disk until the network that has them is read. All
    methods raise ModelNotInstalled, naming what is missing, in excess or of another shape.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors: dict[str, Tensor] = load_file(path)

    def unet(self, config: Mapping[str, Any], dtype: torch.dtype) -> UNet2DConditionModel:
        """Return the UNet, of as many input channels as the file's has."""
        first = self._tensors.get("model.diffusion_model.input_blocks.0.0.weight")
        channels = config["in_channels"] if first is None else first.shape[1]
        own = {**config, "in_channels": channels}
        convert = partial(convert_ldm_unet_checkpoint, config={"addition_embed_type": None, **own})
        return self._network("UNet", lambda: UNet2DConditionModel(**own), lambda model, found: convert(found), dtype)

    def vae(self, config: Mapping[str, Any], dtype: torch.dtype) -> AutoencoderKL:
        """Return the VAE."""
        convert = partial(convert_ldm_vae_checkpoint, config=config)
        return self._network("VAE", lambda: AutoencoderKL(**config), lambda model, found: convert(found), dtype)

    def text_encoder(self, config: Mapping[str, Any], dtype: torch.dtype) -> CLIPTextModel:
        """Return CLIP-L."""
        make = partial(CLIPTextModel, CLIPTextConfig(**config))
        return self._network("CLIP-L", make, lambda model, found: _flat(convert_ldm_clip_checkpoint(found)), dtype)

    def text_encoder_2(self, config: Mapping[str, Any], dtype: torch.dtype) -> CLIPTextModelWithProjection:
        """Return OpenCLIP bigG, which SDXL has."""
        make = partial(CLIPTextModelWithProjection, CLIPTextConfig(**config))
        convert = partial(convert_open_clip_checkpoint, prefix=_OPEN_CLIP)
        return self._network("OpenCLIP bigG", make, convert, dtype)

    def _network(
        self,
        name: str,
        make: Callable[[], M],
        convert: Callable[[M, dict[str, Tensor]], dict[str, Tensor]],
        dtype: torch.dtype,
    ) -> M:
        with init_empty_weights(include_buffers=False):
            model = make()
        try:
            converted = convert(model, dict(self._tensors))
            tensors = {key: each.to(dtype).contiguous() for key, each in converted.items()}
            missing, excess = model.load_state_dict(tensors, strict=False, assign=True)
        except (KeyError, IndexError, RuntimeError) as error:  # RuntimeError: of other shapes; its text names them
            raise self._unfit(name, " ".join(str(error).split())[:400]) from error
        if missing or excess:
            faults = (("missing", missing), ("not known", excess))
            raise self._unfit(name, "; ".join(f"{label}: {_list(keys)}" for label, keys in faults if keys))
        model.eval().requires_grad_(False)
        return model

    def _unfit(self, name: str, fault: str) -> ModelNotInstalled:
        return ModelNotInstalled(
            f"{self._path} does not hold a {name} of a published architecture: {fault}. Take the file as it was "
            "published, or a diffusers folder"
        )


def _flat(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CLIP's tensors under transformers' names, in which `text_model.` is no more."""
    return {
        key.removeprefix("text_model."): tensor
        for key, tensor in tensors.items()
        if not key.endswith("position_ids")  # a row of numbers, not weights
    }


def _list(keys: list[str]) -> str:
    shown = ", ".join(keys[:_NAMED])
    return f"{shown} and {len(keys) - _NAMED} more" if len(keys) > _NAMED else shown
