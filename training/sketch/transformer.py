"""SD3.5's transformer in a form that trains fast: diffusers' weights, and a forward pass of our own in which a token
can stand for several equal ones (`training.sketch.text`), queries, keys and values are projected at once, and all
that is not a matrix product can be compiled into few loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor
from torch.nn import functional

PATCH = 2
NATIVE = 16  # side of the latents that are trained
LARGEST = 32  # side of the largest latents


def network(width: int, layers: int, text_width: int) -> SD3Transformer2DModel:
    """Build a transformer of SD3.5's kind with random weights, which takes latents of up to `LARGEST` squared.

    Positions are one apart: with `sample_size` as it is, diffusers would make them a half.
    """
    transformer = SD3Transformer2DModel(
        sample_size=NATIVE,
        patch_size=PATCH,
        in_channels=16,
        out_channels=16,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=width // 64,
        joint_attention_dim=text_width,
        caption_projection_dim=width,
        pooled_projection_dim=text_width,
        pos_embed_max_size=LARGEST // PATCH,
        qk_norm="rms_norm",
    )
    grid = LARGEST // PATCH
    positions = get_2d_sincos_pos_embed(width, grid, base_size=grid, output_type="pt")
    transformer.pos_embed.pos_embed.copy_(positions.float()[None])
    for block in transformer.transformer_blocks:  # as DiT (Peebles and Xie, 2023): at first, a block changes nothing
        for norm in (block.norm1, block.norm1_context):
            torch.nn.init.zeros_(norm.linear.weight)
            torch.nn.init.zeros_(norm.linear.bias)
    for layer in (
        transformer.time_text_embed.text_embedder.linear_1,
        transformer.time_text_embed.text_embedder.linear_2,
    ):
        # Captions must not begin as a small part of what modulates the blocks (He et al., 2015).
        torch.nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        torch.nn.init.zeros_(layer.bias)
    for last in (transformer.norm_out.linear, transformer.proj_out):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    return transformer


def velocity(
    transformer: Any, latents: Tensor, timestep: Tensor, text: Tensor, pooled: Tensor, counts: Tensor
) -> Tensor:
    """Return the velocity, of the latents' shape (n, 16, height, width).

    `timestep` is (n,) in 0 .. 1000, `text` (n, tokens, joint_attention_dim), `pooled` (n, pooled_projection_dim);
    `counts` (tokens,) says how often each token of the text stands there, and may be 0. Equals the transformer's own
    forward pass on text in which it does stand there that often.
    """
    height, width = latents.shape[-2:]
    conditioning = functional.silu(transformer.time_text_embed(timestep, pooled))
    picture = transformer.pos_embed(latents)
    text = transformer.context_embedder(text)
    bias = torch.cat([counts.new_zeros(picture.shape[1]), counts.log()])
    for block in transformer.transformer_blocks:
        text, picture = _block(block, text, picture, conditioning, bias)
    scale, shift = transformer.norm_out.linear(conditioning)[:, None].chunk(2, dim=-1)
    patches = transformer.proj_out(_modulated(picture, scale, shift))
    grid = patches.unflatten(1, (height // PATCH, width // PATCH)).unflatten(3, (PATCH, PATCH, -1))
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(latents.shape)


def _block(block: Any, text: Tensor, picture: Tensor, conditioning: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Run a JointTransformerBlock. The last one of a transformer leaves the text as it is."""
    count, last = picture.shape[1], block.context_pre_only
    shift, scale, gate, shift_2, scale_2, gate_2 = block.norm1.linear(conditioning)[:, None].chunk(6, dim=-1)
    of_text = block.norm1_context.linear(conditioning)[:, None].chunk(2 if last else 6, dim=-1)
    text_scale, text_shift = of_text if last else (of_text[1], of_text[0])
    mixed = _attention(block.attn, _modulated(picture, scale, shift), _modulated(text, text_scale, text_shift), bias)
    picture = picture + gate * block.attn.to_out[0](mixed[:, :count])
    picture = picture + gate_2 * _feed_forward(block.ff, _modulated(picture, scale_2, shift_2))
    if not last:
        text = text + of_text[2] * block.attn.to_add_out(mixed[:, count:])
        text = text + of_text[5] * _feed_forward(block.ff_context, _modulated(text, of_text[4], of_text[3]))
    return text, picture


def _modulated(values: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return functional.layer_norm(values, values.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _feed_forward(layers: Any, values: Tensor) -> Tensor:
    hidden = functional.gelu(layers.net[0].proj(values), approximate="tanh")
    result: Tensor = layers.net[2](hidden)
    return result


def _attention(attention: Any, picture: Tensor, text: Tensor, bias: Tensor) -> Tensor:
    """Let all tokens attend to all, the picture's first: (n, tokens, width) before the last projection. `bias` is added
    to the scores of each token as a key."""
    of_picture = (attention.to_q, attention.to_k, attention.to_v)
    of_text = (attention.add_q_proj, attention.add_k_proj, attention.add_v_proj)
    parts = zip(
        _heads(picture, of_picture, attention.heads, attention.norm_q, attention.norm_k),
        _heads(text, of_text, attention.heads, attention.norm_added_q, attention.norm_added_k),
        strict=True,
    )
    query, key, value = (torch.cat(pair, dim=1).transpose(1, 2) for pair in parts)
    # Not scaled_dot_product_attention, whose backward pass takes longer than all of this on a CPU.
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
    weights = (scores.float() + bias).softmax(-1).to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2).flatten(2)


def _heads(
    tokens: Tensor, projections: Sequence[torch.nn.Linear], heads: int, norm_query: Any, norm_key: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, each (n, tokens, heads, channels of a head)."""
    weight = torch.cat([each.weight for each in projections])
    bias = torch.cat([each.bias for each in projections])
    query, key, value = functional.linear(tokens, weight, bias).unflatten(2, (3, heads, -1)).unbind(2)
    return _normalised(query, norm_query), _normalised(key, norm_key), value


def _normalised(heads: Tensor, norm: Any) -> Tensor:
    """Return the heads divided by their root mean square (Zhang and Sennrich, 2019), in single precision."""
    values = heads.float()
    return (values * torch.rsqrt(values.square().mean(-1, keepdim=True) + norm.eps) * norm.weight).to(heads.dtype)
