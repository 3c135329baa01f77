"""MAT: a transformer that draws large holes coarsely, and a network after StyleGAN2 that draws them finely.

Li et al., MAT: Mask-Aware Transformer for Large Hole Image Inpainting, CVPR 2022, in the form published for 512 × 512
pixels. Parameters bear its names. Knows nothing of checkpoints and of files.

The published pipeline draws at random for each fill: a latent once, and at the middle of either stage, for every
feature anew, whether it comes from the picture or from the latent. So it never fills a hole the same way twice. Limner
does: one draw was made of each, holds for every picture, and is constant in the network that is served. Their mean
instead, half of each, would be nothing that the network was trained on.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from limner.export.networks.mat_attention import PartialConvolution, Stage
from limner.export.networks.mat_layers import Convolution, Linear, Styled, ToRgb, Upward

SIZE = 512
LATENT = 512
_COARSE = 180  # channels of the first stage
_SMALLEST = 16


def usual_latent() -> Tensor:
    """Return what every picture is filled with, (1, 512) normal."""
    return torch.from_numpy(np.random.RandomState(240).randn(1, LATENT)).float()


def _kept(seed: int, *shape: int) -> Tensor:
    """Return which features come from the picture, and not from the latent: about half of them, always the same."""
    return torch.from_numpy(np.random.RandomState(seed).random_sample(shape) < 0.5)


class Mapping(nn.Module):
    """A latent (n, 512), normal, to the style (n, 512) of all layers."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(8):
            self.add_module(f"fc{index}", Linear(LATENT, LATENT, rate=0.01, activated=True))
        self.register_buffer("w_avg", torch.zeros(LATENT))  # published; of use only to those who draw near the mean

    def forward(self, latent: Tensor) -> Tensor:
        style = latent * (latent.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for index in range(8):
            style = self.get_submodule(f"fc{index}")(style)
        return style


class FirstStage(nn.Module):
    """The coarse picture, (n, 3, 512, 512), of one with a hole.

    `picture` is (n, 3, 512, 512) in [-1, 1], zero in the hole; `known` (n, 1, 512, 512), 1 outside the hole; `w`, what
    the mapping makes of a latent, (n or 1, 512).
    """

    def __init__(self) -> None:
        super().__init__()
        style = 3 * _COARSE
        self.conv_first = PartialConvolution(4, _COARSE)
        self.enc_conv = nn.ModuleList(PartialConvolution(_COARSE, _COARSE, "halve") for _ in range(3))
        self.tran = nn.ModuleList(
            [
                Stage(_COARSE, 64, 8, 2),
                Stage(_COARSE, 32, 16, 3, "halve"),
                Stage(_COARSE, _SMALLEST, 16, 4, "halve"),
                Stage(_COARSE, 32, 16, 3, "double"),
                Stage(_COARSE, 64, 8, 2, "double"),
            ]
        )
        self.ws_style = Linear(LATENT, _COARSE, activated=True)
        self.to_square = Linear(_COARSE, _SMALLEST**2, activated=True)
        self.down_conv = nn.Sequential(*(Convolution(_COARSE, _COARSE, resize="halve") for _ in range(4)))
        self.to_style = Linear(_COARSE, 2 * _COARSE, activated=True)
        self.dec_conv = nn.ModuleList(Upward(_COARSE, _COARSE, style) for _ in range(3))
        kept = _kept(241, _SMALLEST**2, _COARSE).T.reshape(_COARSE, _SMALLEST, _SMALLEST)
        self._kept: Tensor
        self.register_buffer("_kept", kept, persistent=False)

    def forward(self, picture: Tensor, known: Tensor, w: Tensor) -> Tensor:
        x, valid = self.conv_first(torch.cat([known - 0.5, picture], 1), known)
        kept = []
        for convolution in self.enc_conv:
            kept.append(x)
            x, valid = convolution(x, valid)
        for stage in self.tran[:2]:
            x, valid = stage(x, valid)
            kept.append(x)
        x, _ = self.tran[2](x)  # from here on everything counts as known
        drawn_style = self.ws_style(w)
        x = torch.where(self._kept, x, self.to_square(drawn_style).reshape(-1, 1, _SMALLEST, _SMALLEST))
        seen_style = self.to_style(self.down_conv(x).mean((2, 3)))
        style = torch.cat([seen_style, drawn_style.expand(seen_style.shape[0], -1)], 1)
        for stage in self.tran[3:]:
            x = stage(x)[0] + kept.pop()
        first, *larger = self.dec_conv
        x, drawn = first(x, kept.pop(), style)
        for block in larger:
            x, drawn = block(x, kept.pop(), style, drawn)
        coarse: Tensor = drawn * (1 - known) + picture
        return coarse


class Downward(nn.Module):
    """One size of the second stage on its way down; the first one takes pictures."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        is_first = inputs < outputs // 2
        self.conv0 = Convolution(inputs, outputs, 1) if is_first else Convolution(inputs, outputs, resize="halve")
        self.conv1 = Convolution(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        smaller: Tensor = self.conv1(self.conv0(x))
        return smaller


class Smallest(nn.Module):
    """Where the second stage's way up begins: features and a picture of 16 × 16."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.conv0 = Convolution(channels, channels)
        self.conv1 = Styled(channels, channels, style)
        self.toRGB = ToRgb(channels, style)

    def forward(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv1(self.conv0(x) + x, style)
        return x, self.toRGB(x, style)


class ToStyle(nn.Module):
    """The style that the picture itself suggests: (n, channels, 16, 16) to (n, 2 channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*(Convolution(channels, channels, resize="halve") for _ in range(3)))
        self.fc = Linear(channels, 2 * channels, activated=True)

    def forward(self, x: Tensor) -> Tensor:
        style: Tensor = self.fc(self.conv(x).mean((2, 3)))
        return style


class Synthesis(nn.Module):
    """Both stages; inputs and outputs are those of the first one."""

    def __init__(self) -> None:
        super().__init__()
        sides = [SIZE >> step for step in range(6)]
        channels = [min(32768 // side, 512) for side in sides]
        self.first_stage = FirstStage()
        self.enc = nn.ModuleDict(
            {
                f"EncConv_Block_{side}x{side}": Downward(inputs, outputs)
                for side, inputs, outputs in zip(sides, [7, *channels], channels, strict=False)
            }
        )
        self.to_square = Linear(LATENT, _SMALLEST**2, activated=True)
        self.to_style = ToStyle(channels[-1])
        style = LATENT + 2 * channels[-1]
        self.dec = nn.ModuleDict({f"Dec_{_SMALLEST}x{_SMALLEST}": Smallest(channels[-1], style)})
        self.dec.update(
            {
                f"Dec_{side}x{side}": Upward(inputs, outputs, style)
                for side, inputs, outputs in zip(sides[-2::-1], channels[::-1], channels[-2::-1], strict=False)
            }
        )
        self._kept: Tensor
        self.register_buffer("_kept", _kept(242, channels[-1], _SMALLEST, _SMALLEST), persistent=False)

    def forward(self, picture: Tensor, known: Tensor, w: Tensor) -> Tensor:
        x = torch.cat([known - 0.5, self.first_stage(picture, known, w), picture], 1)
        kept = []
        for block in self.enc.values():
            x = block(x)
            kept.append(x)
        x = torch.where(self._kept, kept.pop(), self.to_square(w).reshape(-1, 1, _SMALLEST, _SMALLEST))
        seen_style = self.to_style(x)
        style = torch.cat([w.expand(seen_style.shape[0], -1), seen_style], 1)
        smallest, *larger = self.dec.values()
        x, drawn = smallest(x, style)
        for block in larger:
            x, drawn = block(x, kept.pop(), style, drawn)
        result: Tensor = drawn * (1 - known) + picture
        return result


class Mat(nn.Module):
    """`picture` (n, 3, 512, 512) in [-1, 1], `known` (n, 1, 512, 512) of 0 and 1, 1 outside the hole, and `latent`
    (n or 1, 512), to (n, 3, 512, 512), about -1 to 1 and not clipped; outside the hole the picture itself."""

    def __init__(self) -> None:
        super().__init__()
        self.synthesis = Synthesis()
        self.mapping = Mapping()

    def forward(self, picture: Tensor, known: Tensor, latent: Tensor) -> Tensor:
        filled: Tensor = self.synthesis(picture * known, known, self.mapping(latent))
        return filled


class MatFill(nn.Module):
    """`image` (n, 3, 512, 512) in [0, 1] and `mask` (n, 1, 512, 512) of 0 and 1, 1 in the hole, to `filled` like
    `image`. Wraps a Mat that has its weights: the style of the usual latent is made here, once."""

    def __init__(self, mat: Mat) -> None:
        super().__init__()
        self.synthesis = mat.synthesis
        with torch.no_grad():
            self.register_buffer("_style", mat.mapping(usual_latent()))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        known = 1 - mask
        filled: Tensor = self.synthesis((2 * image - 1) * known, known, self._style)
        return filled / 2 + 0.5
