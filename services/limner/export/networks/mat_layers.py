"""What MAT's parts are built of: layers after StyleGAN2 (Karras et al., 2020) that scale their weights themselves.

Stored weights have unit variance and are divided by the root of the number of inputs (Karras et al., 2018, section
4.1). Leaky activations are multiplied by the root of two, which keeps the variance; here that is done to weights and
biases, before them, as nothing else lies between. Whatever is constant is computed by operators that torch's exporter
folds, so that engines and quantisers find kernels and no arithmetic. Knows nothing of masks and of tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Resize = Literal["keep", "halve", "double"]

_SLOPE = 0.2
_ROOT = 2**0.5


def leaky(x: Tensor) -> Tensor:
    """Return the activation of everything here, but for its factor."""
    return functional.leaky_relu(x, _SLOPE)


def smoothing_filter() -> Tensor:
    """Return the kernel that takes away what a smaller grid can't hold, (4, 4), of sum one."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return torch.outer(line, line)


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, smoothing: Tensor, resize: Resize) -> Tensor:
    """Return (n, outputs, h, w), or half or twice the size, of (n, inputs, h, w) and an odd `kernel`.

    What gets smaller is smoothed before, what gets larger afterwards, channel by channel.
    """
    outputs, inputs, size, _ = map(int, kernel.shape)  # numbers, to the exporter as well
    if resize == "halve":
        smooth = functional.conv2d(x, _for_each(inputs, smoothing), padding=2, groups=inputs)
        return functional.conv2d(smooth, kernel, bias, stride=2)
    if resize == "double":
        # Zeros between the pixels, then the kernel: as a transposed convolution, which turns it round.
        backwards = torch.arange(size - 1, -1, -1)
        turned = kernel.transpose(0, 1).index_select(2, backwards).index_select(3, backwards)
        wide = functional.conv_transpose2d(x, turned, stride=2)
        return functional.conv2d(wide, _for_each(outputs, 4 * smoothing), bias, padding=1, groups=outputs)
    return functional.conv2d(x, kernel, bias, padding=size // 2)


def double_picture(picture: Tensor, smoothing: Tensor) -> Tensor:
    """Return (n, 3, 2h, 2w) of (n, 3, h, w): zeros between the pixels, smoothed; beyond the rim there is zero."""
    return functional.conv_transpose2d(picture, _for_each(3, 4 * smoothing), stride=2, padding=1, groups=3)


def _for_each(channels: int, smoothing: Tensor) -> Tensor:
    """Return the kernel of a convolution channel by channel."""
    return torch.cat([smoothing[None, None]] * channels)


class Linear(nn.Module):
    """(..., inputs) to (..., outputs). `rate` multiplies weights and biases, as they learnt slower by it."""

    def __init__(self, inputs: int, outputs: int, *, rate: float = 1.0, activated: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self._activated = activated
        self._bias_gain = rate * (_ROOT if activated else 1)
        self._gain = self._bias_gain / inputs**0.5

    def forward(self, x: Tensor) -> Tensor:
        mixed = functional.linear(x, self.weight * self._gain, self.bias * self._bias_gain)
        return leaky(mixed) if self._activated else mixed


class Convolution(nn.Module):
    """(n, inputs, h, w) to (n, outputs, h, w), or half or twice the size, activated."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, resize: Resize = "keep") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", smoothing_filter())
        self._gain = _ROOT / (inputs * size**2) ** 0.5
        self._resize: Resize = resize

    def forward(self, x: Tensor) -> Tensor:
        kernel, bias = self.weight * self._gain, self.bias * _ROOT
        return leaky(convolve(x, kernel, bias, self.resample_filter, self._resize))


class Modulated(nn.Module):
    """A convolution whose inputs are weighed by a style, (n, style), without a bias.

    With `normalised`, every output is divided by the length of the kernel so weighed, and gets the activation's factor.
    The inputs are weighed and the outputs divided, instead of the kernel: it stays one for all pictures, and constant.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, style: int, *, resize: Resize = "keep", normalised: bool = True
    ) -> None:
        super().__init__()
        self.affine = Linear(style, inputs)
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, size, size))
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", smoothing_filter())
        self._gain = 1 / (inputs * size**2) ** 0.5
        self._resize: Resize = resize
        self._normalised = normalised

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        kernel = self.weight[0] * self._gain
        weights = self.affine(style)
        mixed = convolve(x * weights[..., None, None], kernel, None, self.resample_filter, self._resize)
        if not self._normalised:
            return mixed
        taps = kernel.flatten(2)
        squares = sum(taps[..., index].square() for index in range(int(taps.shape[2])))
        lengths = functional.linear(weights.square(), squares) + 1e-8
        return mixed * (_ROOT * lengths.rsqrt())[..., None, None]


class Styled(nn.Module):
    """A 3 × 3 convolution with a style, activated."""

    def __init__(self, inputs: int, outputs: int, style: int, resize: Resize = "keep") -> None:
        super().__init__()
        self.conv = Modulated(inputs, outputs, 3, style, resize=resize)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return leaky(self.conv(x, style) + (self.bias * _ROOT).reshape(-1, 1, 1))


class ToRgb(nn.Module):
    """What features add to the picture of half the size: (n, inputs, h, w) to (n, 3, h, w)."""

    def __init__(self, inputs: int, style: int) -> None:
        super().__init__()
        self.conv = Modulated(inputs, 3, 1, style, normalised=False)
        self.bias = nn.Parameter(torch.zeros(3))
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", smoothing_filter())

    def forward(self, x: Tensor, style: Tensor, picture: Tensor | None = None) -> Tensor:
        added: Tensor = self.conv(x, style) + self.bias.reshape(-1, 1, 1)
        return added if picture is None else added + double_picture(picture, self.resample_filter)


class Upward(nn.Module):
    """One size on the way up: features doubled, those of the way down added, and what they draw added to a picture."""

    def __init__(self, inputs: int, outputs: int, style: int) -> None:
        super().__init__()
        self.conv0 = Styled(inputs, outputs, style, "double")
        self.conv1 = Styled(outputs, outputs, style)
        self.toRGB = ToRgb(outputs, style)

    def forward(self, x: Tensor, kept: Tensor, style: Tensor, picture: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.conv1(self.conv0(x, style) + kept, style)
        return x, self.toRGB(x, style, picture)
