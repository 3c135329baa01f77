"""LaMa: a convolutional network whose global channels are convolved as spectra, so that each sees the whole picture.

Suvorov et al., Resolution-robust Large Mask Inpainting with Fourier Convolutions, 2022; the layers are those of Chi,
Jiang and Mu, Fast Fourier Convolution, 2020. The size is that of `big-lama`, and parameters bear its names; the layers
are of any size, for smaller networks.

The spectra are products with matrices of cosines and sines (a DFT), not FFTs: at these sizes that is as fast or faster,
equal within rounding, and an operator that every engine has. Knows nothing of checkpoints and of files.
"""

from __future__ import annotations

import functools
from math import pi
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 64  # channels of the first layer; each of three halvings of the picture doubles them
LOCAL, GLOBAL = 128, 384  # how the 512 channels of the middle are divided
BLOCKS = 18
LONGEST = 512  # rows or columns of a spectrum: pictures of 4096 pixels a side


class Dft(NamedTuple):
    """What turns (..., height, width) pictures into their spectra and back: matrices, the same for every layer.

    Of a real picture's spectrum the left half says all: `half` = width // 2 + 1 columns are kept. Real and imaginary
    parts lie one above the other, as (..., 2 × height, half).
    """

    columns: Tensor  # (width, 2 × half): cosines, then negative sines
    rows: (
        Tensor  # (2 × height, 2 × height): the rotation [[cosines, sines], [-sines, cosines]]; its transpose undoes it
    )
    real: Tensor  # (half, width): back from real parts
    imaginary: Tensor  # (half, width): back from imaginary parts


def dft_of(picture: Tensor) -> Dft:
    """Return the matrices for (n, c, height, width), orthonormal as in `torch.fft.rfft2(norm="ortho")`."""
    row_cosines, row_sines = _waves(picture.shape[2])
    cosines, sines = _waves(picture.shape[3])
    half = picture.shape[3] // 2 + 1
    cosines, sines = cosines[:, :half], sines[:, :half]
    # The right half mirrors the left one, so each column counts twice: but not the first, and not the middle one of an
    # even width. Those two are their own mirror images.
    index = torch.arange(half)
    mirrored = (index > 0) & (2 * index < torch.arange(picture.shape[3])[-1:] + 1)
    count = 1 + mirrored.to(picture.dtype)
    return Dft(
        columns=torch.cat([cosines, -sines], 1),
        rows=torch.cat([torch.cat([row_cosines, row_sines], 1), torch.cat([-row_sines, row_cosines], 1)]),
        real=(cosines * count).T,
        imaginary=(-sines * count).T,
    )


def _waves(length: int) -> tuple[Tensor, Tensor]:
    """Return (length, length) cosines and sines of 2π j k / length, over the root of `length`.

    They are looked up, not computed: engines that run a network in bf16 or fp16 do so with its angles as well, which
    then lose most of their digits. What is looked up is rounded once.
    """
    index = torch.arange(length)
    count = index[-1:] + 1  # the length as a tensor: a recorded run would keep a number as a constant
    place = torch.remainder(index[:, None] * index, count) + count * (count - 1) // 2
    cosines, sines = _turns()
    return cosines[place], sines[place]


@functools.cache
def _turns() -> tuple[Tensor, Tensor]:
    """Return cosines and sines of one turn in one step, of one in two steps, and so on up to LONGEST steps.

    Before those of n steps lie n × (n - 1) / 2 values.
    """
    steps = [torch.arange(count, dtype=torch.float64) for count in range(1, LONGEST + 1)]
    angles = torch.cat([step * (2 * pi / len(step)) for step in steps])
    norms = torch.cat([torch.full_like(step, len(step) ** -0.5) for step in steps])
    return (torch.cos(angles) * norms).float(), (torch.sin(angles) * norms).float()


class FourierUnit(nn.Module):
    """Convolves spectra. Their channels are c0's real part, c0's imaginary part, c1's real part and so on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_layer = _convolution(2 * channels, 2 * channels, 1)
        self.bn = nn.BatchNorm2d(2 * channels)

    def forward(self, picture: Tensor, dft: Dft) -> Tensor:
        channels, height, half = picture.shape[1], picture.shape[2], dft.real.shape[0]
        parts = picture @ dft.columns
        spectrum = dft.rows @ torch.cat([parts[..., :half], parts[..., half:]], 2)
        changed = torch.relu(self.bn(self.conv_layer(spectrum.reshape(-1, 2 * channels, height, half))))
        rows = dft.rows.T @ changed.reshape(-1, channels, 2 * height, half)
        return rows[:, :, :height] @ dft.real + rows[:, :, height:] @ dft.imaginary


class SpectralTransform(nn.Module):
    """From global channels to global channels, by way of half as many."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 2
        self.conv1 = nn.Sequential(_convolution(channels, narrow, 1), nn.BatchNorm2d(narrow), nn.ReLU())
        self.fu = FourierUnit(narrow)
        self.conv2 = _convolution(narrow, channels, 1)

    def forward(self, picture: Tensor, dft: Dft) -> Tensor:
        narrow = self.conv1(picture)
        widened: Tensor = self.conv2(narrow + self.fu(narrow, dft))
        return widened


class Down(nn.Module):
    """A step of the way down, local channels only: (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.ffc = nn.ModuleDict({"convl2l": _convolution(inputs, outputs, kernel, stride)})
        self.bn_l = nn.BatchNorm2d(outputs)
        self._pad = kernel // 2

    def forward(self, picture: Tensor) -> Tensor:
        return torch.relu(self.bn_l(self.ffc["convl2l"](_reflected(picture, self._pad))))


class Split(nn.Module):
    """The last step down, which makes the first global channels."""

    def __init__(self, inputs: int, local: int, wide: int) -> None:
        super().__init__()
        self.ffc = nn.ModuleDict(
            {"convl2l": _convolution(inputs, local, 3, 2), "convl2g": _convolution(inputs, wide, 3, 2)}
        )
        self.bn_l = nn.BatchNorm2d(local)
        self.bn_g = nn.BatchNorm2d(wide)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        padded = _reflected(picture, 1)
        return torch.relu(self.bn_l(self.ffc["convl2l"](padded))), torch.relu(self.bn_g(self.ffc["convl2g"](padded)))


class FourierConvolution(nn.Module):
    """From local and global channels to as many: all near ways are convolutions, global to global goes by spectra."""

    def __init__(self, local: int, wide: int) -> None:
        super().__init__()
        self.ffc = nn.ModuleDict(
            {
                "convl2l": _convolution(local, local, 3),
                "convl2g": _convolution(local, wide, 3),
                "convg2l": _convolution(wide, local, 3),
                "convg2g": SpectralTransform(wide),
            }
        )
        self.bn_l = nn.BatchNorm2d(local)
        self.bn_g = nn.BatchNorm2d(wide)

    def forward(self, local: Tensor, wide: Tensor, dft: Dft) -> tuple[Tensor, Tensor]:
        near_local, near_wide = _reflected(local, 1), _reflected(wide, 1)
        to_local = self.ffc["convl2l"](near_local) + self.ffc["convg2l"](near_wide)
        to_wide = self.ffc["convl2g"](near_local) + self.ffc["convg2g"](wide, dft)
        return torch.relu(self.bn_l(to_local)), torch.relu(self.bn_g(to_wide))


class Block(nn.Module):
    """What two Fourier convolutions add."""

    def __init__(self, local: int, wide: int) -> None:
        super().__init__()
        self.conv1 = FourierConvolution(local, wide)
        self.conv2 = FourierConvolution(local, wide)

    def forward(self, local: Tensor, wide: Tensor, dft: Dft) -> tuple[Tensor, Tensor]:
        more_local, more_wide = self.conv2(*self.conv1(local, wide, dft), dft)
        return local + more_local, wide + more_wide


class Generator(nn.Module):
    """The layers in a row; what has no parameters holds its place, since names count it."""

    def __init__(self) -> None:
        super().__init__()
        down = [Down(4, WIDTH, kernel=7, stride=1), Down(WIDTH, 2 * WIDTH), Down(2 * WIDTH, 4 * WIDTH)]
        blocks = [Block(LOCAL, GLOBAL) for _ in range(BLOCKS)]
        ends = [nn.ReflectionPad2d(3), _convolution(WIDTH, 3, 7, bias=True), nn.Sigmoid()]
        up = [layer for inputs in (8, 4, 2) for layer in up_layers(inputs * WIDTH)]
        self.model = nn.ModuleList(
            [nn.Identity(), *down, Split(4 * WIDTH, LOCAL, GLOBAL), *blocks, nn.Identity(), *up, *ends]
        )

    def forward(self, picture: Tensor) -> Tensor:
        _, *down, split = self.model[:5]
        for layer in down:
            picture = layer(picture)
        local, wide = split(picture)
        dft = dft_of(wide)
        for block in self.model[5 : 5 + BLOCKS]:
            local, wide = block(local, wide, dft)
        picture = torch.cat([local, wide], 1)
        for layer in self.model[5 + BLOCKS :]:
            picture = layer(picture)
        return picture


class Lama(nn.Module):
    """(n, 4, h, w) float32 to (n, 3, h, w) in [0, 1]; h and w multiples of 8 from 16 to 4096.

    The channels are red, green and blue in [0, 1], zero in the hole, and the mask, 1 in the hole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator = Generator()

    def forward(self, picture: Tensor) -> Tensor:
        filled: Tensor = self.generator(picture)
        return filled


class LamaFill(nn.Module):
    """`image` (n, 3, h, w) in [0, 1] and `mask` (n, 1, h, w) of 0 and 1, 1 in the hole, to `filled` like `image`."""

    def __init__(self, lama: nn.Module) -> None:
        super().__init__()
        self.lama = lama

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        filled: Tensor = self.lama(torch.cat([image * (1 - mask), mask], 1))
        return filled


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, bias=bias)


def up_layers(inputs: int) -> tuple[nn.Module, ...]:
    """Return the layers of a step up: (n, inputs, h, w) to (n, inputs / 2, 2 h, 2 w)."""
    outputs = inputs // 2
    return nn.ConvTranspose2d(inputs, outputs, 3, 2, padding=1, output_padding=1), nn.BatchNorm2d(outputs), nn.ReLU()


def _reflected(picture: Tensor, pad: int) -> Tensor:
    return functional.pad(picture, (pad, pad, pad, pad), mode="reflect")
