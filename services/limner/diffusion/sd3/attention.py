"""The attention of SD3: pictures' and texts' tokens attend to each other (Esser et al., 2024), queries and keys
normalised (Henry et al., 2020). diffusers' own projects queries, keys and values one by one; here each kind of token is
projected once, which is one large matrix product instead of three smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional


class JointAttention:
    """A processor of diffusers' `Attention` modules whose projections were fused."""

    def __call__(
        self,
        attention: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,  # `Attention` passes it, and SD3 has none
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the picture's tokens, or with text the pair of picture's and text's: (batch, tokens, width)."""
        count = hidden_states.shape[1]
        parts = _heads(attention, attention.to_qkv(hidden_states), attention.norm_q, attention.norm_k)
        if encoder_hidden_states is not None:
            added = attention.to_added_qkv(encoder_hidden_states)
            text = _heads(attention, added, attention.norm_added_q, attention.norm_added_k)
            parts = [torch.cat(pair, dim=1) for pair in zip(parts, text, strict=True)]
        query, key, value = (part.transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        picture: torch.Tensor = attention.to_out[0](mixed[:, :count])
        if encoder_hidden_states is None:
            return picture
        rest = mixed[:, count:]
        return picture, rest if attention.context_pre_only else attention.to_add_out(rest)


def fuse_projections(attention: Any) -> None:
    """Put `to_qkv` and, for text, `to_added_qkv` in the place of a module's separate projections; their outputs are
    queries, keys and values, one after the other. What they replace is let go."""
    attention.to_qkv = _side_by_side([attention.to_q, attention.to_k, attention.to_v])
    del attention.to_q, attention.to_k, attention.to_v
    if getattr(attention, "add_q_proj", None) is not None:
        attention.to_added_qkv = _side_by_side([attention.add_q_proj, attention.add_k_proj, attention.add_v_proj])
        del attention.add_q_proj, attention.add_k_proj, attention.add_v_proj
    attention.set_processor(JointAttention())


def _heads(attention: Any, projected: torch.Tensor, norm_query: Any, norm_key: Any) -> list[torch.Tensor]:
    """Return queries, keys and values, each (batch, tokens, heads, channels of a head)."""
    query, key, value = projected.unflatten(2, (3, attention.heads, -1)).unbind(2)
    return [_normalised(query, norm_query), _normalised(key, norm_key), value]


def _normalised(heads: torch.Tensor, norm: Any) -> torch.Tensor:
    """Return the heads divided by their root mean square. SD3 Medium, the first version, has no such norms."""
    return heads if norm is None else functional.rms_norm(heads, heads.shape[-1:], norm.weight, norm.eps)


@torch.no_grad()
def _side_by_side(linears: Sequence[torch.nn.Linear]) -> torch.nn.Linear:
    """Return one layer whose output is those of several, one after the other."""
    weight = torch.cat([each.weight for each in linears])
    joined = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=linears[0].bias is not None, device="meta")
    joined.weight = torch.nn.Parameter(weight, requires_grad=False)
    if linears[0].bias is not None:
        joined.bias = torch.nn.Parameter(torch.cat([each.bias for each in linears]), requires_grad=False)
    return joined.eval()
