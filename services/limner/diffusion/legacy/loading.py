"""Brings the parts of an SD 1 or SDXL model into memory: from a diffusers folder, or from a single file. Knows neither
requests nor which models there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from limner.core.errors import ModelNotInstalled
from limner.diffusion.encoders import HUB_TOKENIZERS, find_vocabulary
from limner.diffusion.folders import read_network, read_tokenizer
from limner.diffusion.legacy.parts import Parts
from limner.diffusion.legacy.single_file import SingleFile, config
from limner.diffusion.sources import read_json
from limner.diffusion.variant import Family


def load_legacy(
    path: Path,
    *,
    family: Literal["sdxl", "sd1"],
    device: torch.device,
    dtype: torch.dtype,
    text_device: torch.device | None = None,
    text_dtype: torch.dtype | None = None,
    vae_dtype: torch.dtype | None = None,
    text_encoders: str = "",
    hub_cache: str = "",
    offline: bool = True,
) -> Parts:
    """Return the parts of a model, each in evaluation mode. `path` is a folder as diffusers writes it, or a
    `.safetensors` file as checkpoints were published; of weights only safetensors are read.

    Text encoders and VAE are as the UNet where nothing else is said; an SDXL VAE whose configuration says that it
    overflows in 16 bits is in float32 rather than float16. A single file has its tokenizers from the folder
    `text_encoders` (or the one of that name beside it), else from the hub's cache, or from the hub unless `offline`.
    Raises ModelNotInstalled for what is missing or of another shape.
    """
    dtypes = _Dtypes(dtype, text_dtype or dtype, vae_dtype or dtype)
    if path.is_file():
        tokenizers = Path(text_encoders).expanduser() if text_encoders else path.parent / "text_encoders"
        parts = _of_file(path, family, dtypes, device, tokenizers, hub_cache, offline)
    else:
        parts = _of_folder(path, family, dtypes, device)
    for module in (parts.unet, parts.vae):
        module.to(device, memory_format=torch.channels_last)
    for encoder in (parts.text_encoder, parts.text_encoder_2):
        if encoder is not None:
            encoder.to(text_device or device)
    for module in (parts.unet, parts.vae, parts.text_encoder, parts.text_encoder_2):
        if module is not None:
            module.eval().requires_grad_(False)
    return parts


@dataclass(frozen=True)
class _Dtypes:
    unet: torch.dtype
    text: torch.dtype
    vae: torch.dtype

    def of_vae(self, family: Family, config: Mapping[str, Any]) -> torch.dtype:
        """Return float32 for a VAE that would overflow in float16: SDXL's, unless its configuration denies it."""
        overflows = family == "sdxl" and config.get("force_upcast", True) and self.vae == torch.float16
        return torch.float32 if overflows else self.vae


def _of_folder(path: Path, family: Literal["sdxl", "sd1"], dtypes: _Dtypes, device: torch.device) -> Parts:
    vae_dtype = dtypes.of_vae(family, read_json(path / "vae" / "config.json"))
    is_xl = family == "sdxl"
    index = read_json(path / "model_index.json")
    return Parts(
        family=family,
        unet=read_network(UNet2DConditionModel, path / "unet", torch_dtype=dtypes.unet),
        vae=read_network(AutoencoderKL, path / "vae", torch_dtype=vae_dtype),
        text_encoder=read_network(CLIPTextModel, path / "text_encoder", dtype=dtypes.text),
        tokenizer=read_tokenizer(path / "tokenizer"),
        scheduler=read_json(path / "scheduler" / "scheduler_config.json"),
        device=device,
        dtype=dtypes.unet,
        text_encoder_2=read_network(CLIPTextModelWithProjection, path / "text_encoder_2", dtype=dtypes.text)
        if is_xl
        else None,
        tokenizer_2=read_tokenizer(path / "tokenizer_2") if is_xl else None,
        force_zeros=bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def _of_file(
    path: Path,
    family: Literal["sdxl", "sd1"],
    dtypes: _Dtypes,
    device: torch.device,
    tokenizers: Path,
    hub_cache: str,
    offline: bool,
) -> Parts:
    file, configs, is_xl = SingleFile(path), config(family), family == "sdxl"
    vocabulary = _vocabulary(path, tokenizers, hub_cache, offline)
    return Parts(
        family=family,
        unet=file.unet(configs["unet"], dtypes.unet),
        vae=file.vae(configs["vae"], dtypes.of_vae(family, configs["vae"])),
        text_encoder=file.text_encoder(configs["text_encoder"], dtypes.text),
        tokenizer=read_tokenizer(vocabulary),
        scheduler=configs["scheduler"],
        device=device,
        dtype=dtypes.unet,
        text_encoder_2=file.text_encoder_2(configs["text_encoder_2"], dtypes.text) if is_xl else None,
        tokenizer_2=read_tokenizer(vocabulary, pad_token="!") if is_xl else None,  # OpenCLIP fills up with the token 0
    )


def _vocabulary(path: Path, folder: Path, hub_cache: str, offline: bool) -> Path:
    """Return the folder of CLIP's vocabulary, which single files lack; from the hub unless `offline`."""
    try:
        return find_vocabulary(path.name, folder, "text_encoder", hub_cache)
    except ModelNotInstalled:
        if offline:
            raise
    from huggingface_hub import snapshot_download

    hub = HUB_TOKENIZERS["text_encoder"]
    try:
        files = ["tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt"]
        return Path(snapshot_download(hub, allow_patterns=files, cache_dir=hub_cache or None))
    except (OSError, ValueError) as error:
        raise ModelNotInstalled(f"{path.name} lacks its tokenizer, and {hub} can't be fetched: {error}") from error
