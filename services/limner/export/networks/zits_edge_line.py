"""ZITS' edge and line network: draws a picture's edges and lines on through its hole, at 256². Knows nothing of how
they were found, nor of what is done with them.

Dong et al., Incremental Transformer Structure Enhanced Image Inpainting with Masking Positional Encoding, CVPR 2022,
section 3.2 ("transformer structure restorer"). Eight times smaller, the picture is 32 × 32 tokens; blocks of axial
attention (along columns and along rows, with a bias by distance) take turns with blocks of full attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 256
_TOKENS = SIDE // 8
_WIDTH = 256
_HEADS = 8
_PAIRS = 8  # of an axial and a full block


class Attention(nn.Module):
    """Scaled dot-product attention with eight heads over (sequences, length, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(_WIDTH, _WIDTH)
        self.query = nn.Linear(_WIDTH, _WIDTH)
        self.value = nn.Linear(_WIDTH, _WIDTH)
        self.proj = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        query, key, value = (self._heads(layer(tokens)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-2, -1) * (_WIDTH // _HEADS) ** -0.5
        if bias is not None:
            scores = scores + bias
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2)
        projected: Tensor = self.proj(mixed.reshape(tokens.shape))
        return projected

    def _heads(self, tokens: Tensor) -> Tensor:
        """Return (sequences, heads, length, width of a head)."""
        return tokens.reshape(*tokens.shape[:2], _HEADS, _WIDTH // _HEADS).transpose(1, 2)


class AxialBlock(nn.Module):
    """Attention along columns and along rows, both of the same input, then a feed-forward layer; (n, 32, 32, width).

    The published names call attention along a column `row`: it runs over the rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rln1 = nn.LayerNorm(_WIDTH, eps=1e-4)
        self.cln1 = nn.LayerNorm(_WIDTH, eps=1e-4)
        self.ln2 = nn.LayerNorm(_WIDTH, eps=1e-4)
        self.attn_row = Attention()
        self.attn_col = Attention()
        self.ff = nn.Sequential(nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH))
        self.row_rel_pos_bias = nn.Linear(2 * _TOKENS - 1, _HEADS, bias=False)
        self.col_rel_pos_bias = nn.Linear(2 * _TOKENS - 1, _HEADS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        columns = _along(x.transpose(1, 2), self.rln1, self.attn_row, self.row_rel_pos_bias).transpose(1, 2)
        rows = _along(x, self.cln1, self.attn_col, self.col_rel_pos_bias)
        x = x + columns + rows
        added: Tensor = self.ff(self.ln2(x))
        return x + added


def _along(x: Tensor, norm: nn.Module, attention: nn.Module, distances: nn.Linear) -> Tensor:
    """Return attention along the third axis of (n, 32, 32, width), each line of it by itself."""
    places = torch.arange(_TOKENS)
    bias = distances.weight[:, places[None, :] - places[:, None] + _TOKENS - 1]  # (heads, from, to)
    attended: Tensor = attention(norm(x).flatten(0, 1), bias)
    return attended.reshape(x.shape)


class FullBlock(nn.Module):
    """Attention between all tokens, then a feed-forward layer; (n, 32, 32, width).

    The published block also saves a triangular `mask` that it never uses; it is left away.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(_WIDTH)
        self.ln2 = nn.LayerNorm(_WIDTH)
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(_WIDTH, 4 * _WIDTH), QuickGELU(), nn.Linear(4 * _WIDTH, _WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x).flatten(1, 2)).reshape(x.shape)
        added: Tensor = self.mlp(self.ln2(x))
        return x + added


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x): Hendrycks and Gimpel's cheaper approximation of GELU, 2016."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class EdgeLine(nn.Module):
    """EdgeLine()(image, edge, line, mask) → (edge_logits, line_logits), each (n, 1, 256, 256) float32.

    `image` is (n, 3, 256, 256) float32 RGB in [-1, 1]; `edge` and `line` are (n, 1, 256, 256) in [0, 1], `mask` is
    of the same shape, 1 in the hole. What the mask covers is multiplied away.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(6, 64, 7, padding=3, padding_mode="reflect")
        self.conv2 = nn.Conv2d(64, 128, 4, stride=2, padding=1)
        self.conv3 = nn.Conv2d(128, 256, 4, stride=2, padding=1)
        self.conv4 = nn.Conv2d(256, _WIDTH, 4, stride=2, padding=1)
        self.pos_emb = nn.Parameter(torch.zeros(1, _TOKENS**2, _WIDTH))
        self.blocks = nn.Sequential(*(block() for _ in range(_PAIRS) for block in (AxialBlock, FullBlock)))
        self.ln_f = nn.LayerNorm(_WIDTH)
        self.convt1 = nn.ConvTranspose2d(_WIDTH, 256, 4, stride=2, padding=1)
        self.convt2 = nn.ConvTranspose2d(256, 128, 4, stride=2, padding=1)
        self.convt3 = nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1)
        self.convt4 = nn.Conv2d(64, 2, 7, padding=3, padding_mode="reflect")

    def forward(self, image: Tensor, edge: Tensor, line: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((torch.cat((image, edge, line), dim=1) * (1 - mask), mask), dim=1)
        for smaller in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = functional.relu(smaller(x))
        tokens = x.permute(0, 2, 3, 1) + self.pos_emb.reshape(1, _TOKENS, _TOKENS, _WIDTH)
        x = self.ln_f(self.blocks(tokens)).permute(0, 3, 1, 2)
        for larger in (self.convt1, self.convt2, self.convt3):
            x = functional.relu(larger(x))
        edge_logits, line_logits = self.convt4(x).split(1, dim=1)
        return edge_logits, line_logits
