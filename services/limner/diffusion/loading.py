"""Brings a model's parts into memory as planned: from a diffusers folder, or from a single file with its text encoders.
Knows neither requests nor which models there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase, T5EncoderModel

from limner.core.errors import ModelNotInstalled
from limner.diffusion.encoders import FILES as ENCODERS
from limner.diffusion.encoders import Encoder, find_encoders
from limner.diffusion.folders import read_network, read_tokenizer
from limner.diffusion.legacy.loading import load_legacy
from limner.diffusion.legacy.parts import Parts
from limner.diffusion.offload import by_blocks, on_demand
from limner.diffusion.plan import Plan
from limner.diffusion.quantise import quantise
from limner.diffusion.sd3.components import Components
from limner.diffusion.sd3.transformer import Transformer
from limner.diffusion.single_file import read_clip, read_t5, read_transformer, read_vae
from limner.diffusion.sources import Place
from limner.diffusion.tiling import work_in_tiles

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_sd3(
    place: Place,
    plan: Plan,
    *,
    text_encoders: str = "",
    hub_cache: str = "",
    preview_decoder: str = "",
    step: Callable[[int], None] = lambda done: None,
) -> Components:
    """Return the parts of an SD3 model, each in evaluation mode, where and in what the plan says.

    `step` is told after each of four parts: text encoders, transformer, VAE, all of it where it belongs. Raises
    ModelNotInstalled for what is missing or of another shape."""
    device, dtype = torch.device(plan.placement.device), DTYPES[plan.dtype]
    decoder = _preview_decoder(preview_decoder, dtype, device)
    encoders = find_encoders(place, text_encoders, cache=hub_cache, t5=plan.t5)
    text_dtype = DTYPES[plan.text_dtype]
    clip_l, clip_g = (_clip(encoders[name], text_dtype) for name in ("text_encoder", "text_encoder_2"))
    t5 = _t5(encoders["text_encoder_3"], text_dtype) if "text_encoder_3" in encoders else None
    step(1)
    transformer = _transformer(place, dtype)
    step(2)
    components = Components(
        transformer=transformer,
        text_encoder=clip_l,
        text_encoder_2=clip_g,
        text_encoder_3=t5,
        tokenizer=_tokenizer(encoders["text_encoder"]),
        tokenizer_2=_tokenizer(encoders["text_encoder_2"]),
        tokenizer_3=_tokenizer(encoders["text_encoder_3"]) if t5 is not None else None,
        vae=_vae(place, DTYPES[plan.vae_dtype]),
        device=device,
        dtype=dtype,
        preview_decoder=decoder,
    )
    step(3)
    _settle(components, plan)
    step(4)
    return components


def load_legacy_parts(
    place: Place, plan: Plan, *, text_encoders: str = "", hub_cache: str = "", offline: bool = True
) -> Parts:
    """Return the parts of an SDXL or SD 1 model, where and in what the plan says. Raises as `load_sd3`."""
    assert place.family != "sd3"
    device = torch.device(plan.placement.device)
    parts = load_legacy(
        place.path,
        family=place.family,
        device=device if not plan.group_offload else torch.device("cpu"),
        dtype=DTYPES[plan.dtype],
        text_device=device if plan.text_encoders == "device" else torch.device("cpu"),
        text_dtype=DTYPES[plan.text_dtype],
        vae_dtype=DTYPES[plan.vae_dtype],
        text_encoders=text_encoders,
        hub_cache=hub_cache,
        offline=offline,
    )
    parts.device = device
    parts.vae.to(device)
    _settle_denoiser(parts.unet, plan, device)
    for encoder in (parts.text_encoder, parts.text_encoder_2):
        if encoder is not None:
            _settle_encoder(encoder, plan, device)
    if plan.vae_tiling:
        work_in_tiles(parts.vae)
    return parts


def _settle(components: Components, plan: Plan) -> None:
    """Bring what was read to where it runs."""
    device = components.device
    components.transformer.fuse()
    _settle_denoiser(components.transformer, plan, device)
    components.vae.to(device, memory_format=torch.channels_last)
    for encoder in (components.text_encoder, components.text_encoder_2):
        _settle_encoder(encoder, plan, device)
    if components.text_encoder_3 is not None:
        on_device = device if plan.text_encoders == "device" else None
        quantise(components.text_encoder_3, plan.t5_quantisation, on_device)
        _settle_encoder(components.text_encoder_3, plan, device)
    for part in (*ENCODERS, "transformer", "vae"):
        if (module := getattr(components, part)) is not None:
            module.eval().requires_grad_(False)


def _settle_denoiser(module: torch.nn.Module, plan: Plan, device: torch.device) -> None:
    quantise(module, plan.quantisation, None if plan.group_offload else device)
    if plan.group_offload:
        by_blocks(module, device)
    else:
        module.to(device)


def _settle_encoder(module: torch.nn.Module, plan: Plan, device: torch.device) -> None:
    if plan.text_encoders == "offload":
        on_demand(module, device)
    elif plan.text_encoders == "device":
        module.to(device)


def _transformer(place: Place, dtype: torch.dtype) -> Transformer:
    if place.is_file:
        return read_transformer(place, dtype)
    transformer: Transformer = read_network(Transformer, place.path / "transformer", torch_dtype=dtype)
    return transformer


def _vae(place: Place, dtype: torch.dtype) -> AutoencoderKL:
    if place.is_file:
        return read_vae(place, dtype)
    return read_network(AutoencoderKL, place.path / "vae", torch_dtype=dtype)


def _clip(encoder: Encoder, dtype: torch.dtype) -> CLIPTextModelWithProjection:
    if encoder.path.is_file():
        return read_clip(encoder, dtype)
    return read_network(CLIPTextModelWithProjection, encoder.path, dtype=dtype)


def _t5(encoder: Encoder, dtype: torch.dtype) -> T5EncoderModel:
    if encoder.path.is_file():
        return read_t5(encoder, dtype)
    return read_network(T5EncoderModel, encoder.path, dtype=dtype)


def _tokenizer(encoder: Encoder) -> PreTrainedTokenizerBase:
    tokenizer = read_tokenizer(encoder.tokenizer)
    if encoder.name == "text_encoder_2" and encoder.path.is_file():
        tokenizer.pad_token = "!"  # OpenCLIP fills up with the token 0
    return tokenizer


def _preview_decoder(folder: str, dtype: torch.dtype, device: torch.device) -> AutoencoderTiny | None:
    if not folder:
        return None
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise ModelNotInstalled(f"preview_decoder: there is no config.json in {path}; name the folder that has it")
    decoder = read_network(AutoencoderTiny, path, torch_dtype=dtype)
    return decoder.to(device).eval().requires_grad_(False)
