"""How large a model is that lies on this machine: its Shape, from the headers of its files. Reads no weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

from limner.diffusion.encoders import Encoder
from limner.diffusion.shape import Part, Shape
from limner.diffusion.sources import SINGLE_FILE_PREFIX, Place, Tensor, tensors

BLOCK = re.compile(r"(?:joint_blocks|transformer_blocks|encoder\.block|encoder\.layers)\.(\d+)\.")
NOT_LINEAR = ("embedding.weight", "shared.weight", "embed_tokens.weight", "relative_attention_bias.weight")
LEGACY_TEXT = ("cond_stage_model.", "conditioner.")
VAE_PREFIX = "first_stage_model."


def shape_of(place: Place, encoders: Mapping[str, Encoder]) -> Shape:
    """Return the numbers of values of the model's networks; `encoders` are those of an SD3 model, else empty."""
    if place.is_file:
        denoiser = _within(place.header, SINGLE_FILE_PREFIX) or dict(place.header)
        vae = _within(place.header, VAE_PREFIX)
        clips = [_within(place.header, prefix) for prefix in LEGACY_TEXT]
        clip = [encoders[name].header for name in encoders] or [header for header in clips if header]
    else:
        weights = place.weights()
        denoiser = tensors(weights["transformer" if place.family == "sd3" else "unet"])
        vae = tensors(weights["vae"])
        clip = [tensors(weights[name]) for name in weights if name in ("text_encoder", "text_encoder_2")]
    t5 = encoders.get("text_encoder_3")
    if encoders:
        clip = [encoders[name].header for name in ("text_encoder", "text_encoder_2")]
    first = ("x_embedder.proj.weight", "pos_embed.proj.weight", "input_blocks.0.0.weight", "conv_in.weight")
    return Shape(
        name=place.name,
        family=place.family,
        denoiser=part_of(denoiser, has_blocks=place.family == "sd3"),
        clip=tuple(part_of(header) for header in clip),
        t5=part_of(t5.header) if t5 else None,
        vae=part_of(vae),
        width=next(denoiser[key].shape[0] for key in first if key in denoiser),
        vae_width=vae["encoder.conv_in.weight"].shape[0] if "encoder.conv_in.weight" in vae else 128,
    )


def part_of(header: Mapping[str, Tensor], *, has_blocks: bool = True) -> Part:
    """Return one network's numbers of values by its tensors."""
    blocks: dict[str, int] = {}
    for key, tensor in header.items():
        if has_blocks and (found := BLOCK.search(key)):
            blocks[found[1]] = blocks.get(found[1], 0) + tensor.size
    return Part(
        values=sum(tensor.size for tensor in header.values()),
        linear=sum(tensor.size for key, tensor in header.items() if _is_linear(key, tensor)),
        block=max(blocks.values(), default=0),
    )


def _is_linear(key: str, tensor: Tensor) -> bool:
    return len(tensor.shape) == 2 and key.endswith(".weight") and not key.endswith(NOT_LINEAR)


def _within(header: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): header[key] for key in header if key.startswith(prefix)}
