"""MI-GAN: a small network of separable convolutions that draws the hole from coarse to fine.

Sargsyan et al., MI-GAN: A Simple Baseline for Image Inpainting on Mobile Devices, 2023, in the form in which it is
published for use: what several branches learnt is already one kernel, and the noise is a constant. Parameters bear the
names of that form. Knows nothing of checkpoints and of files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 512  # of the published network; its noise has this size
SMALLEST = 4


def channels_at(side: int) -> int:
    """Return how many channels the network has where the picture measures `side` × `side`."""
    return min(32768 // side, 512)


def activation(features: Tensor) -> Tensor:
    """Return StyleGAN's: leaky by a fifth, with the variance kept and nothing beyond ±256."""
    return (functional.leaky_relu(features, 0.2) * 2**0.5).clamp(-256, 256)


class Halve(nn.Module):
    """(n, c, h, w) to (n, c, h / 2, w / 2), smoothed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(channels, channels, 4, stride=2, padding=1, groups=channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        halved: Tensor = self.filter(features)
        return halved


class Double(nn.Module):
    """(n, c, h, w) to (n, c, 2h, 2w): zeros between the pixels, then a smoothing filter.

    Both in one transposed convolution, which turns the kernel round; that of the published weights is symmetric.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.filter = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, groups=channels, bias=False)
        # Published as well: the ones and zeros that others multiply by to get the zeros between the pixels.
        self.register_buffer("filter_const", torch.zeros(1, 1, side, side))

    def forward(self, features: Tensor) -> Tensor:
        doubled: Tensor = self.filter(features)
        return doubled


class Separable(nn.Module):
    """A 3 × 3 convolution: channel by channel first, then pixel by pixel, with a change of size between the two."""

    def __init__(self, inputs: int, outputs: int, *, halve: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.downsample = Halve(inputs) if halve else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return activation(self.conv2(self.downsample(activation(self.conv1(features)))))


class Noisy(nn.Module):
    """The same with noise added: (n, inputs, h, w) to (n, outputs, side, side); with `double`, side is twice h."""

    noise_const: Tensor

    def __init__(self, inputs: int, outputs: int, side: int, *, double: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.upsample = Double(outputs, side) if double else nn.Identity()
        self.register_buffer("noise_const", torch.zeros(side, side))
        self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        mixed = self.upsample(self.conv2(activation(self.conv1(features))))
        return activation(mixed + self.noise_const * self.noise_strength)


class EncoderBlock(nn.Module):
    """One size on the way down; the first one takes the picture itself."""

    def __init__(self, side: int) -> None:
        super().__init__()
        channels = channels_at(side)
        if side == SIZE:
            self.fromrgb = nn.Conv2d(4, channels, 1)
        self.conv1 = Separable(channels, channels)
        halve = side > SMALLEST
        self.conv2 = Separable(channels, channels_at(side // 2) if halve else channels, halve=halve)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the next smaller size gets, and what the same size on the way up gets."""
        kept = self.conv1(features)
        return self.conv2(kept), kept


class SmallestBlock(nn.Module):
    """Where the way up begins."""

    def __init__(self) -> None:
        super().__init__()
        channels = channels_at(SMALLEST)
        self.conv1 = Separable(channels, channels)
        self.conv2 = Separable(channels, channels)
        self.torgb = nn.Conv2d(channels, 3, 1)

    def forward(self, features: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv2(self.conv1(features) + kept)
        return features, self.torgb(features)


class SynthesisBlock(nn.Module):
    """One size on the way up: finer features, and their part of the picture added to the coarser picture."""

    def __init__(self, side: int) -> None:
        super().__init__()
        channels = channels_at(side)
        self.conv1 = Noisy(channels_at(side // 2), channels, side, double=True)
        self.conv2 = Noisy(channels, channels, side)
        self.torgb = nn.Conv2d(channels, 3, 1)
        self.upsample = Double(3, side)

    def forward(self, features: Tensor, kept: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv2(self.conv1(features) + kept)
        return features, self.upsample(picture) + self.torgb(features)


class Migan(nn.Module):
    """(n, 4, 512, 512) float32 to (n, 3, 512, 512), about -1 to 1 and not clipped.

    The channels are half minus the mask (1 in the hole), then red, green and blue in [-1, 1], zero in the hole.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sides = [SIZE >> step for step in range((SIZE // SMALLEST).bit_length())]
        self.encoder = nn.ModuleDict({f"b{side}": EncoderBlock(side) for side in self._sides})
        self.synthesis = nn.ModuleDict({f"b{SMALLEST}": SmallestBlock()})
        self.synthesis.update({f"b{side}": SynthesisBlock(side) for side in self._sides[-2::-1]})

    def forward(self, picture: Tensor) -> Tensor:
        first = self.encoder[f"b{SIZE}"]
        assert isinstance(first, EncoderBlock)
        features = activation(first.fromrgb(picture))
        kept = {}
        for side in self._sides:
            features, kept[side] = self.encoder[f"b{side}"](features)
        features, drawn = self.synthesis[f"b{SMALLEST}"](features, kept[SMALLEST])
        for side in self._sides[-2::-1]:
            features, drawn = self.synthesis[f"b{side}"](features, kept[side], drawn)
        result: Tensor = drawn
        return result


class MiganFill(nn.Module):
    """`image` (n, 3, 512, 512) in [0, 1] and `mask` (n, 1, 512, 512) of 0 and 1, 1 in the hole, to `filled` like
    `image`."""

    def __init__(self, migan: nn.Module) -> None:
        super().__init__()
        self.migan = migan

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        drawn: Tensor = self.migan(torch.cat([0.5 - mask, (2 * image - 1) * (1 - mask)], 1))
        return drawn / 2 + 0.5
