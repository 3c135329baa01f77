"""Reads the single files that Stability AI publishes for SD3 and SD3.5: tensors of their own model code, under its
names, into diffusers' and transformers' classes. What the classes need to know is told by the tensors' shapes and, for
text encoders, by configurations beside this file, so that nothing else is asked for. Knows no plan and no device.

Tensors are read one by one into a model without memory, so that reading takes little more than the model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import AutoencoderKL
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from limner.core.errors import ModelNotInstalled
from limner.diffusion import sources
from limner.diffusion.encoders import FILES, Encoder
from limner.diffusion.facts import architecture_of
from limner.diffusion.sd3.latents import SCALE, SHIFT
from limner.diffusion.sd3.transformer import Transformer
from limner.diffusion.sources import SINGLE_FILE_PREFIX, Place

CONFIGS = Path(__file__).parent / "sd3" / "configs"
VAE_PREFIX = "first_stage_model."
ENCODER_PREFIX = "text_encoders."

HEAD_WIDTH = 64  # channels of an attention head, in every transformer of the family
VAE_GROUPS = 32

TRANSFORMER = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
}
"""Layers of Stability's MMDiTX outside its blocks, and diffusers' names for them."""

BLOCK = {
    "x_block.adaLN_modulation.1": "norm1.linear",
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
"""Those of a block."""

FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
"""Those of a block that are three layers in diffusers."""

T5_VOCABULARY = ("shared.weight", "encoder.embed_tokens.weight")

SHIFT_FIRST = "adaLN_modulation.1"  # of the last layers: shift before scale, diffusers has them the other way round

VAE = (
    (r"(encoder|decoder)\.mid\.block_(\d+)", lambda part, index: f"{part}.mid_block.resnets.{int(index) - 1}"),
    (r"(encoder|decoder)\.mid\.attn_1\.norm", "{}.mid_block.attentions.0.group_norm".format),
    (r"(encoder|decoder)\.mid\.attn_1\.(q|k|v)", "{}.mid_block.attentions.0.to_{}".format),
    (r"(encoder|decoder)\.mid\.attn_1\.proj_out", "{}.mid_block.attentions.0.to_out.0".format),
    (r"encoder\.down\.(\d+)\.block\.(\d+)", "encoder.down_blocks.{}.resnets.{}".format),
    (r"encoder\.down\.(\d+)\.downsample", "encoder.down_blocks.{}.downsamplers.0".format),
    (r"(encoder|decoder)\.norm_out", "{}.conv_norm_out".format),
)
"""Layers of Stability's SDVAE, and diffusers' names for them; its decoder's levels are counted from the other end."""

M = TypeVar("M", bound=nn.Module)
NAMED = 5  # keys that an error names

Named = Iterable[tuple[str, Tensor]]


def read_transformer(place: Place, dtype: torch.dtype) -> Transformer:
    """Return the transformer of a single file, on the CPU. Raises ModelNotInstalled, naming what is missing, in excess
    or of another shape."""
    header = _own(place.header)
    shape = {key: tensor.shape for key, tensor in header.items()}
    try:
        architecture = architecture_of(header)
        with torch.device("meta"):
            transformer = Transformer(
                sample_size=128,
                patch_size=shape["x_embedder.proj.weight"][2],
                in_channels=shape["x_embedder.proj.weight"][1],
                out_channels=shape["x_embedder.proj.weight"][1],
                num_layers=architecture.layer_count,
                num_attention_heads=architecture.width // HEAD_WIDTH,
                attention_head_dim=HEAD_WIDTH,
                joint_attention_dim=shape["context_embedder.weight"][1],
                caption_projection_dim=shape["context_embedder.weight"][0],
                pooled_projection_dim=shape["y_embedder.mlp.0.weight"][1],
                pos_embed_max_size=math.isqrt(shape["pos_embed"][1]),
                dual_attention_layers=architecture.dual_attention,
                qk_norm="rms_norm" if architecture.qk_norm else None,
            )
    except (KeyError, IndexError) as error:
        raise _unfit(place.path, "the transformer", [str(error).strip("'")], (), ()) from error
    last = architecture.layer_count - 1
    prefix = SINGLE_FILE_PREFIX if f"{SINGLE_FILE_PREFIX}pos_embed" in place.header else ""

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for key, tensor in _read(place.path, [prefix + key for key in header]):
            yield from _transformer_names(key.removeprefix(prefix), tensor.to(dtype), last)

    filled: Transformer = _filled(transformer, tensors(), place.path, "the transformer")
    return filled


def read_vae(place: Place, dtype: torch.dtype) -> AutoencoderKL:
    """Return the VAE of a single file, on the CPU. Raises as `read_transformer`."""
    header = {
        key.removeprefix(VAE_PREFIX): tensor for key, tensor in place.header.items() if key.startswith(VAE_PREFIX)
    }
    levels = 1 + max(
        (int(match[1]) for key in header if (match := re.match(r"encoder\.down\.(\d+)\.", key))), default=0
    )
    blocks = {key.split(".")[4] for key in header if key.startswith("encoder.down.0.block.")}
    try:
        widths = [header[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
        with torch.device("meta"):
            vae = AutoencoderKL(
                block_out_channels=tuple(widths),
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                layers_per_block=len(blocks),
                latent_channels=header["decoder.conv_in.weight"].shape[1],
                norm_num_groups=VAE_GROUPS,
                scaling_factor=SCALE,
                shift_factor=SHIFT,
                use_quant_conv=False,
                use_post_quant_conv=False,
            )
    except KeyError as error:
        raise _unfit(place.path, "the VAE", [f"{VAE_PREFIX}{error.args[0]}"], (), ()) from error

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for key, tensor in _read(place.path, [VAE_PREFIX + key for key in header]):
            name = _vae_name(key.removeprefix(VAE_PREFIX), levels)
            is_pointwise = ".attentions." in name and tensor.ndim == 4  # convolutions there, Linear layers here
            yield name, (tensor[:, :, 0, 0] if is_pointwise else tensor).to(dtype)

    return _filled(vae, tensors(), place.path, "the VAE")


def read_clip(encoder: Encoder, dtype: torch.dtype, config: Mapping[str, Any] | None = None) -> Any:
    """Return a CLIP text encoder of a file in the published names, on the CPU.

    SD3 was trained with CLIP-L's pooled output as it is, before its projection (Stability-AI/sd3.5, other_impls.py), so
    CLIP-L's is the identity whatever the file says. Raises as `read_transformer`."""
    config = config or json.loads((CONFIGS / f"{FILES[encoder.name]}.json").read_text())
    with init_empty_weights(include_buffers=False):
        model = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    is_l = encoder.name == "text_encoder"
    left_out = ("logit_scale", "position_ids", *(("text_projection.weight",) if is_l else ()))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from _encoder_tensors(encoder, dtype, left_out)
        if is_l:
            yield "text_projection.weight", torch.eye(config["projection_dim"], dtype=dtype)

    return _filled(model, tensors(), encoder.path, encoder.name)


def read_t5(encoder: Encoder, dtype: torch.dtype, config: Mapping[str, Any] | None = None) -> Any:
    """Return the T5 encoder of a file in the published names, on the CPU. Raises as `read_transformer`."""
    config = config or json.loads((CONFIGS / f"{FILES[encoder.name]}.json").read_text())
    with init_empty_weights(include_buffers=False):
        model = T5EncoderModel(T5Config(**config))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for key, tensor in _encoder_tensors(encoder, dtype, ()):
            if key in T5_VOCABULARY:  # files have it under one name or both
                yield from ((name, tensor) for name in T5_VOCABULARY)
            else:
                yield key, tensor

    model = _filled(model, tensors(), encoder.path, encoder.name)
    model.tie_weights()
    return model


def _own(header: Mapping[str, sources.Tensor]) -> dict[str, sources.Tensor]:
    """Return the transformer's tensors without their prefix; of a file without prefixes, all but the other parts'."""
    if any(key.startswith(SINGLE_FILE_PREFIX) for key in header):
        return {
            key.removeprefix(SINGLE_FILE_PREFIX): header[key] for key in header if key.startswith(SINGLE_FILE_PREFIX)
        }
    return {key: header[key] for key in header if not key.startswith((VAE_PREFIX, ENCODER_PREFIX))}


def _transformer_names(key: str, tensor: Tensor, last: int) -> Named:
    """Return what a tensor of Stability's MMDiTX is in diffusers: one tensor, or three. What is not known keeps its
    name."""
    if key == "pos_embed":
        return [("pos_embed.pos_embed", tensor)]
    layer, _, kind = key.rpartition(".")
    if layer == f"final_layer.{SHIFT_FIRST}":
        return [(f"norm_out.linear.{kind}", _scale_first(tensor))]
    if (found := re.fullmatch(r"joint_blocks\.(\d+)\.(.+)", layer)) is None:
        return [(f"{TRANSFORMER[layer]}.{kind}" if layer in TRANSFORMER else key, tensor)]
    index, layer = int(found[1]), found[2]
    block = f"transformer_blocks.{index}"
    if layer in FUSED:
        return [(f"{block}.{name}.{kind}", part) for name, part in zip(FUSED[layer], tensor.chunk(3), strict=True)]
    if layer not in BLOCK:
        return [(key, tensor)]
    if index == last and layer == f"context_block.{SHIFT_FIRST}":
        tensor = _scale_first(tensor)
    return [(f"{block}.{BLOCK[layer]}.{kind}", tensor)]


def _scale_first(tensor: Tensor) -> Tensor:
    shift, scale = tensor.chunk(2)
    return torch.cat([scale, shift])


def _vae_name(key: str, levels: int) -> str:
    """Return diffusers' name of a tensor of Stability's SDVAE. What is not known keeps its name."""
    key = key.replace(".nin_shortcut.", ".conv_shortcut.")
    if found := re.match(r"decoder\.up\.(\d+)\.(block\.(\d+)|upsample)", key):
        level = levels - 1 - int(found[1])
        inside = f"resnets.{found[3]}" if found[3] else "upsamplers.0"
        return f"decoder.up_blocks.{level}.{inside}{key[found.end() :]}"
    for pattern, name in VAE:
        if found := re.match(pattern + r"(?=\.)", key):
            renamed: Callable[..., str] = name
            return renamed(*found.groups()) + key[found.end() :]
    return key


def _encoder_tensors(encoder: Encoder, dtype: torch.dtype, left_out: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    wanted = [key for key in encoder.header if not key.endswith(tuple(left_out))]
    for key, tensor in _read(encoder.path, [encoder.prefix + key for key in wanted]):
        yield key.removeprefix(encoder.prefix), tensor.to(dtype)


def _read(path: Path, keys: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, "pt") as file:
        for key in keys:
            yield key, file.get_tensor(key)


def _filled(model: M, tensors: Named, path: Path, what: str) -> M:
    """Give a model without memory these tensors; all of its own, and no others."""
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found: dict[str, Tensor] = dict(tensors)
    missing = [name for name in wanted if name not in found]
    excess = [name for name in found if name not in wanted]
    other = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name])}"
        for name in wanted
        if name in found and found[name].shape != wanted[name]
    ]
    if missing or excess or other:
        raise _unfit(path, what, missing, excess, other)
    model.load_state_dict(found, assign=True)
    return model.eval().requires_grad_(False)


def _unfit(
    path: Path, what: str, missing: Collection[str], excess: Collection[str], other: Collection[str]
) -> ModelNotInstalled:
    kinds = (("missing", missing), ("not known", excess), ("of another shape", other))
    faults = [f"{label}: {_list(names)}" for label, names in kinds if names]
    return ModelNotInstalled(
        f"{path} does not hold {what} of a published architecture; {'; '.join(faults)}. Take the file as it was "
        "published, or a diffusers folder"
    )


def _list(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown
