"""Writes SD 1 and SDXL pipelines as the single files that checkpoints were published as, in the names of latent
diffusion's code and OpenCLIP's, made here from diffusers' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def write_single_file(pipe: Any, path: Path) -> Path:
    """Write the pipeline's networks and return the path."""
    is_xl = hasattr(pipe, "text_encoder_2")
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in unet(pipe.unet).items()}
    tensors |= {f"first_stage_model.{key}": tensor for key, tensor in vae(pipe.vae).items()}
    prefix = "conditioner.embedders.0.transformer." if is_xl else "cond_stage_model.transformer."
    clip = pipe.text_encoder.state_dict()
    tensors |= {f"{prefix}text_model.{key}": tensor for key, tensor in clip.items()}
    tensors[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if is_xl:
        found = open_clip(pipe.text_encoder_2.state_dict())
        tensors |= {f"conditioner.embedders.1.model.{key}": tensor for key, tensor in found.items()}
    tensors["alphas_cumprod"] = torch.ones(1000)  # as files have it, beside much that nobody needs
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


def unet(model: Any) -> dict[str, Tensor]:
    """Return a UNet's tensors as latent diffusion names them: blocks in one row, numbered from the input."""
    layers = model.config.layers_per_block
    levels = len(model.config.block_out_channels)
    names = dict(UNET)
    for level in range(levels):
        for layer in range(layers + 1):
            down, up = level * (layers + 1) + layer + 1, level * (layers + 1) + layer
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{down}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{down}.1"
            names[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{up}.0"
            names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{up}.1"
        has_attention = hasattr(model.up_blocks[level], "attentions")
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
        names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{up}.{2 if has_attention else 1}.conv"
    return {_ldm(key, names): tensor for key, tensor in model.state_dict().items()}


def vae(model: Any) -> dict[str, Tensor]:
    """Return a VAE's tensors as latent diffusion names them."""
    levels = len(model.config.block_out_channels)
    named = {}
    for key, tensor in model.state_dict().items():
        for level in range(levels):
            key = key.replace(f"encoder.down_blocks.{level}.resnets", f"encoder.down.{level}.block")
            key = key.replace(f"encoder.down_blocks.{level}.downsamplers.0", f"encoder.down.{level}.downsample")
            key = key.replace(f"decoder.up_blocks.{level}.resnets", f"decoder.up.{levels - 1 - level}.block")
            key = key.replace(f"decoder.up_blocks.{level}.upsamplers.0", f"decoder.up.{levels - 1 - level}.upsample")
        for own, theirs in (
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
            ("mid_block.attentions.0.to_", "mid.attn_1."),
            ("conv_norm_out", "norm_out"),
            ("conv_shortcut", "nin_shortcut"),
        ):
            key = key.replace(own, theirs)
        is_pointwise = ".attn_1." in key and tensor.ndim == 2  # convolutions there
        named[key] = tensor[:, :, None, None] if is_pointwise else tensor
    return named


def open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return CLIP's tensors, in transformers' names, as OpenCLIP has them: queries, keys and values in one."""
    named = {}
    for key, tensor in tensors.items():
        key = key.removeprefix("text_model.")
        if key in OPEN_CLIP:
            named[OPEN_CLIP[key]] = tensor
        elif key == "text_projection.weight":
            named["text_projection"] = tensor.T
        elif ".self_attn.q_proj." in key:
            kind = key.rpartition(".")[2]
            parts = [tensors["text_model." + key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            named[_block(key).replace(f"q_proj.{kind}", f"in_proj_{kind}")] = torch.cat(parts)
        elif ".k_proj." not in key and ".v_proj." not in key:
            named[_block(key)] = tensor
    return named


def _block(key: str) -> str:
    for own, theirs in (
        ("encoder.layers.", "transformer.resblocks."),
        ("self_attn", "attn"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ):
        key = key.replace(own, theirs)
    return key


def _ldm(key: str, names: dict[str, str]) -> str:
    block = next(name for name in sorted(names, key=len, reverse=True) if key.startswith(f"{name}."))
    rest = key[len(block) + 1 :]
    if "resnets" in block:
        part, _, kind = rest.rpartition(".")
        rest = f"{RESNET[part]}.{kind}"
    return f"{names[block]}.{rest}"
