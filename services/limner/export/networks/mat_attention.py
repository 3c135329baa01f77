"""MAT's transformer: attention within windows that leaves out what is not known yet, and what is known grows by it.

Li et al., MAT: Mask-Aware Transformer for Large Hole Image Inpainting, CVPR 2022, sections 3.2 and 3.3; windows that
shift after Liu et al., Swin Transformer, 2021. No norms, and a block's input is fused with what it attended to instead
of being added. Features are (n, 180, h, w) between the stages and (n, h, w, 180) in them, row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.export.networks.mat_layers import Convolution, Linear, Resize

_HEADS = 6
_REPELLED = -100.0  # added where a query shall not see a key
_SHORTEST = 1.2e-7  # tokens of no length at all occur; float16 holds this


class PartialConvolution(nn.Module):
    """A convolution that makes up for what its windows don't know of the picture; Liu et al., 2018, section 3.1.

    With `known` (n, 1, h, w) of 0 and 1: windows that know nothing give zero, and all others are known from here on.
    What lies beyond the rim isn't known.
    """

    def __init__(self, inputs: int, outputs: int, resize: Resize = "keep") -> None:
        super().__init__()
        self.conv = Convolution(inputs, outputs, resize=resize)
        self._stride = 2 if resize == "halve" else 1

    def forward(self, x: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self.conv(x)
        if known is None:
            return x, None
        counted = 9 * functional.avg_pool2d(known, 3, self._stride, 1)
        known = functional.max_pool2d(known, 3, self._stride, 1)
        return x * (9 * known / counted.clamp(min=1)), known


class Attention(nn.Module):
    """Of every token to the others in its window: (n, windows, tokens, width) to the same.

    `bias` is added to what is fed to softmax, (n or 1, windows, tokens or 1, tokens).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.proj = Linear(width, width)
        self._scale = (width // _HEADS) ** -0.5

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        direction = x / x.square().sum(-1, keepdim=True).sqrt().clamp(min=_SHORTEST)
        likeness = self._heads(self.q(direction) * self._scale) @ self._heads(self.k(direction)).transpose(-2, -1)
        if bias is not None:
            likeness = likeness + bias.unsqueeze(2)
        seen = likeness.softmax(-1) @ self._heads(self.v(x))
        mixed: Tensor = self.proj(seen.transpose(2, 3).flatten(-2))
        return mixed

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], _HEADS, -1).transpose(2, 3)


class Mlp(nn.Module):
    """Two layers on every token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, 2 * width, activated=True)
        self.fc2 = Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(self.fc1(x))
        return mixed


class Block(nn.Module):
    """Attention in windows, fused with what came in: (n, side, side, width) to the same, `known` with one channel too.

    A shifted block's windows begin `shift` further right and below, and go round at the rim.
    """

    def __init__(self, width: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.attn = Attention(width)
        self.fuse = Linear(2 * width, width, activated=True)
        self.mlp = Mlp(width)
        self.attn_mask: Tensor
        if shift:
            self.register_buffer("attn_mask", _apart(side, window, shift))
        self._window, self._shift, self._across = window, shift, side // window

    def forward(self, x: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
        bias = self.attn_mask[None] if self._shift else None
        if known is not None:
            known = self._cut(known)
            hidden = (1 - known.transpose(-2, -1)) * _REPELLED
            bias = hidden if bias is None else bias + hidden
            known = self._join(known.amax(2, keepdim=True).expand(-1, -1, self._window**2, -1))
        seen = self._join(self.attn(self._cut(x), bias))
        return self.mlp(self.fuse(torch.cat([x, seen], -1))), known

    def _cut(self, x: Tensor) -> Tensor:
        """Return the windows of (n, side, side, c): (n, windows, tokens, c)."""
        if self._shift:
            x = x.roll((-self._shift, -self._shift), (1, 2))
        grid = x.reshape(-1, self._across, self._window, self._across, self._window, x.shape[-1])
        return grid.transpose(2, 3).reshape(-1, self._across**2, self._window**2, x.shape[-1])

    def _join(self, windows: Tensor) -> Tensor:
        grid = windows.reshape(-1, self._across, self._across, self._window, self._window, windows.shape[-1])
        side = self._across * self._window
        x = grid.transpose(2, 3).reshape(-1, side, side, windows.shape[-1])
        return x.roll((self._shift, self._shift), (1, 2)) if self._shift else x


class Stage(nn.Module):
    """Blocks of one size, every other one shifted, around which a convolution's result is added: (n, width, h, w) to
    (n, width, side, side), and `known` likewise. A window as large as the map has nowhere to shift to."""

    def __init__(self, width: int, side: int, window: int, blocks: int, resize: Resize = "keep") -> None:
        super().__init__()
        self.downsample = _Resized(width, resize) if resize != "keep" else None
        shift = window // 2 if window < side else 0
        self.blocks = nn.ModuleList(Block(width, side, window, shift * (index % 2)) for index in range(blocks))
        self.conv = PartialConvolution(width, width)

    def forward(self, x: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if self.downsample is not None:
            x, known = self.downsample(x, known)
        tokens, known = x.permute(0, 2, 3, 1), None if known is None else known.permute(0, 2, 3, 1)
        for block in self.blocks:
            tokens, known = block(tokens, known)
        found, known = self.conv(tokens.permute(0, 3, 1, 2), None if known is None else known.permute(0, 3, 1, 2))
        return x + found, known


class _Resized(nn.Module):
    """What leads from one stage to the next; larger as well, in spite of its published name."""

    def __init__(self, width: int, resize: Resize) -> None:
        super().__init__()
        self.conv = PartialConvolution(width, width, resize)

    def forward(self, x: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
        resized: tuple[Tensor, Tensor | None] = self.conv(x, known)
        return resized


def _apart(side: int, window: int, shift: int) -> Tensor:
    """Return what keeps tokens apart that lie in one window only because windows go round the rim.

    (windows, tokens, tokens): zero for neighbours, `_REPELLED` for others.
    """
    line = torch.arange(side)
    part = (line >= side - window).int() + (line >= side - shift).int()
    parts = 3 * part[:, None] + part
    across = side // window
    windows = parts.reshape(across, window, across, window).transpose(1, 2).reshape(across**2, window**2)
    return (windows[:, :, None] != windows[:, None]) * _REPELLED
