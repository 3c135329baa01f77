"""What layers are called: by diffusers, by Stability AI, and by trainers that write `_` for every dot. Knows no
tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Part = Literal["all", "first third", "second third", "last third", "halves swapped"]

_COMPONENTS = {
    "lora_unet_": "transformer",  # kohya's for every denoiser
    "lora_transformer_": "transformer",  # OneTrainer
    "lycoris_": "transformer",
    "model.diffusion_model.": "transformer",
    "diffusion_model.": "transformer",  # ComfyUI
    "transformer.": "transformer",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
}
"""Components by the prefixes of keys. Keys without any are the transformer's: so diffusers saves one component."""

_WRAPPER = "base_model.model."  # peft's own models


@dataclass(frozen=True)
class Layer:
    """Where a layer of a file belongs."""

    component: str
    path: str  # in diffusers' model
    part: Part = "all"  # of the layer's outputs


def layers_of(key: str, inputs: int, outputs: int) -> Sequence[Layer]:
    """Return the layers of diffusers' model that a file's layer `key` with so many channels changes: three for one that
    projects queries, keys and values at once, none if the name is not known."""
    key = key.removeprefix(_WRAPPER)
    prefix = next((each for each in _COMPONENTS if key.startswith(each)), "")
    component = _COMPONENTS.get(prefix, "transformer")
    body = key.removeprefix(prefix)
    flat = body.replace(".", "_")
    if component != "transformer":
        layers = _text_layers(component, flat)
    else:
        layers = _published(flat, inputs, outputs) or _diffusers(flat)
    if not layers and "." in body and not prefix.endswith("_"):
        return [Layer(component, body)]  # whether there is such a layer, the model itself knows
    return layers


_TEXT = [
    (r"text_model_encoder_layers_(\d+)_self_attn_([qkv]|out)_proj", r"text_model.encoder.layers.\1.self_attn.\2_proj"),
    (r"text_model_encoder_layers_(\d+)_mlp_fc([12])", r"text_model.encoder.layers.\1.mlp.fc\2"),
    (r"text_projection", r"text_projection"),
    (r"encoder_block_(\d+)_layer_0_SelfAttention_([qkvo])", r"encoder.block.\1.layer.0.SelfAttention.\2"),
    (r"encoder_block_(\d+)_layer_1_DenseReluDense_(wi|wi_0|wi_1|wo)", r"encoder.block.\1.layer.1.DenseReluDense.\2"),
]
_DIFFUSERS = [
    (r"transformer_blocks_(\d+)_(attn2?)_to_out_0", r"transformer_blocks.\1.\2.to_out.0"),
    (r"transformer_blocks_(\d+)_(attn2?)_(to_[qkv]|add_[qkv]_proj|to_add_out)", r"transformer_blocks.\1.\2.\3"),
    (r"transformer_blocks_(\d+)_(ff|ff_context)_net_0_proj", r"transformer_blocks.\1.\2.net.0.proj"),
    (r"transformer_blocks_(\d+)_(ff|ff_context)_net_2", r"transformer_blocks.\1.\2.net.2"),
    (r"transformer_blocks_(\d+)_(norm1|norm1_context)_linear", r"transformer_blocks.\1.\2.linear"),
    (r"time_text_embed_(timestep|text)_embedder_linear_([12])", r"time_text_embed.\1_embedder.linear_\2"),
    (r"norm_out_linear", r"norm_out.linear"),
    (r"(context_embedder|proj_out)", r"\1"),
]
_PUBLISHED = [
    (r"joint_blocks_(\d+)_x_block_(attn2?)_proj", r"transformer_blocks.\1.\2.to_out.0"),
    (r"joint_blocks_(\d+)_context_block_attn_proj", r"transformer_blocks.\1.attn.to_add_out"),
    (r"joint_blocks_(\d+)_x_block_mlp_fc1", r"transformer_blocks.\1.ff.net.0.proj"),
    (r"joint_blocks_(\d+)_x_block_mlp_fc2", r"transformer_blocks.\1.ff.net.2"),
    (r"joint_blocks_(\d+)_context_block_mlp_fc1", r"transformer_blocks.\1.ff_context.net.0.proj"),
    (r"joint_blocks_(\d+)_context_block_mlp_fc2", r"transformer_blocks.\1.ff_context.net.2"),
    (r"joint_blocks_(\d+)_x_block_adaLN_modulation_1", r"transformer_blocks.\1.norm1.linear"),
    (r"joint_blocks_(\d+)_context_block_adaLN_modulation_1", r"transformer_blocks.\1.norm1_context.linear"),
    (r"t_embedder_mlp_0", r"time_text_embed.timestep_embedder.linear_1"),
    (r"t_embedder_mlp_2", r"time_text_embed.timestep_embedder.linear_2"),
    (r"y_embedder_mlp_0", r"time_text_embed.text_embedder.linear_1"),
    (r"y_embedder_mlp_2", r"time_text_embed.text_embedder.linear_2"),
    (r"final_layer_adaLN_modulation_1", r"norm_out.linear"),
    (r"final_layer_linear", r"proj_out"),
]
"""Names of Stability AI's code with `_` for dots, and diffusers' names of the same layers."""

_QKV = re.compile(r"joint_blocks_(\d+)_(x|context)_block_(attn2?)_qkv")
_THIRDS: tuple[Part, ...] = ("first third", "second third", "last third")


def _text_layers(component: str, flat: str) -> Sequence[Layer]:
    return [Layer(component, path) for path in _translated(flat, _TEXT)]


def _diffusers(flat: str) -> Sequence[Layer]:
    return [Layer("transformer", path) for path in _translated(flat, _DIFFUSERS)]


def _published(flat: str, inputs: int, outputs: int) -> Sequence[Layer]:
    joined = _QKV.fullmatch(flat)
    if joined:
        block, stream, attention = joined.groups()
        names = [f"to_{each}" if stream == "x" else f"add_{each}_proj" for each in "qkv"]
        paths = [f"transformer_blocks.{block}.{attention}.{name}" for name in names]
        return [Layer("transformer", path, part) for path, part in zip(paths, _THIRDS, strict=True)]
    # Where there are no more than shift and scale, diffusers has them the other way round: after the last block, and in
    # the last block's text stream, which leaves nothing.
    swapped = "adaLN_modulation" in flat and outputs == 2 * inputs
    return [
        Layer("transformer", path, "halves swapped" if swapped else "all") for path in _translated(flat, _PUBLISHED)
    ]


def _translated(flat: str, table: Sequence[tuple[str, str]]) -> Sequence[str]:
    """Return the first name of the table that fits, or nothing."""
    for pattern, replacement in table:
        found = re.fullmatch(pattern, flat)
        if found:
            return [found.expand(replacement)]
    return []
