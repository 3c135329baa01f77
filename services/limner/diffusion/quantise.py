"""Linear layers whose weights take a byte or half of one. Knows no model.

`int8` and `nf4` are formats of weights: they are multiplied in the values' own dtype, on any device. `fp8` rounds the
values too and multiplies eight-bit floats, which newer devices do at twice the speed. Weights stay plain tensors under
their usual names, so that hooks, safetensors and moving between devices work as with any layer.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import ScalingType

INT8_MOST = 127
FP8 = torch.float8_e4m3fn
FP8_MOST = torch.finfo(FP8).max  # 448
FP8_MULTIPLE = 16  # of a layer's channels: other sizes can't be multiplied
NF4_BLOCK = 64  # weights of a row that share their scale, as published

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The sixteen values of the 4-bit NormalFloat (Dettmers et al., QLoRA, 2023, appendix E)."""


class QuantisedLinear(nn.Module):
    """Takes the place of an `nn.Linear`: `QuantisedLinear(layer)` has its sizes and its bias."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = None if layer.bias is None else _fixed(layer.bias.detach())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class Int8Linear(QuantisedLinear):
    """Weights in eight bits, each output channel with a scale of its own: (out, in) int8 times (out,)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        scaled, scale = _by_rows(layer.weight.detach(), INT8_MOST)
        self.weight = _fixed(scaled.round_().to(torch.int8))
        self.scale = _fixed(scale.squeeze(1).to(layer.weight.dtype))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = values.to(self.scale.dtype)  # that of the weights as they were: T5 has some in fp32 on purpose
        # Whole numbers to 127 are exact in every float, so that scaling what comes out loses less than scaling weights.
        out = functional.linear(values, self.weight.to(values.dtype)).mul_(self.scale)
        return out if self.bias is None else out.add_(self.bias)


class Fp8Linear(QuantisedLinear):
    """Weights in e4m3 (Micikevicius et al., 2022), each output channel with a scale of its own; the values are rounded
    to the same format, each row with its own scale. Values must be in bf16."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        scaled, scale = _by_rows(layer.weight.detach(), FP8_MOST)
        self.weight = _fixed(scaled.to(FP8))
        self.scale = _fixed(scale)  # (out, 1), float32: that is what the multiplication takes

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        rows, scale = _by_rows(values.flatten(0, -2), FP8_MOST)
        out: torch.Tensor = functional.scaled_mm(
            rows.to(FP8),
            self.weight.t(),
            scale,
            ScalingType.RowWise,
            self.scale.float().t(),  # `module.to(dtype)` may have changed it
            ScalingType.RowWise,
            output_dtype=values.dtype,
        ).unflatten(0, values.shape[:-1])
        return out if self.bias is None else out.add_(self.bias)


class Nf4Linear(QuantisedLinear):
    """Weights in four bits, as places in NF4, two a byte, every 64 of them with a scale of their own."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        dtype, device = layer.weight.dtype, layer.weight.device
        scaled, scale = _by_rows(layer.weight.detach().reshape(-1, NF4_BLOCK), 1)
        table = torch.tensor(NF4, device=device)
        places = torch.bucketize(scaled, (table[1:] + table[:-1]) / 2).to(torch.uint8).flatten()
        # (out * in / 2,); called int8, as transformers' T5 would bring its values to the dtype of any other weight.
        self.weight = _fixed((places[0::2] << 4 | places[1::2]).view(torch.int8))
        self.scale = _fixed(scale.to(dtype))  # (out * in / 64, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = values.to(self.scale.dtype)  # as in Int8Linear
        pairs = functional.embedding(self.weight.view(torch.uint8).int(), _nf4_pairs(values.dtype, values.device))
        weight = pairs.view(-1, NF4_BLOCK).mul_(self.scale).view(self.out_features, self.in_features)
        return functional.linear(values, weight, self.bias)


KINDS: dict[str, type[QuantisedLinear]] = {"int8": Int8Linear, "fp8": Fp8Linear, "nf4": Nf4Linear}


@torch.no_grad()
def quantise(
    module: nn.Module, kind: Literal["none", "int8", "fp8", "nf4"], device: torch.device | str | None = None
) -> None:
    """Replace the Linear layers in `module`'s repeated blocks, which have nearly all of its weights: what comes before
    and after them stays as it is. Layers whose sizes the format can't have stay too.

    With a `device`, each layer is quantised there and remains there, so that the whole never needs to fit.
    """
    if kind == "none":
        return
    paths = [path for path, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    for path in paths:  # one layer after the other, as there may be no room for both forms of all
        layer = module.get_submodule(path)
        if isinstance(layer, nn.Linear) and _is_in_a_list(module, path) and _fits(layer, kind):
            parent, _, name = path.rpartition(".")
            quantised = KINDS[kind](layer if device is None else layer.to(device))
            setattr(module.get_submodule(parent), name, quantised.eval())


def _is_in_a_list(module: nn.Module, path: str) -> bool:
    """Say whether a submodule is part of one of several alike, as transformers' blocks are."""
    while path:
        path = path.rpartition(".")[0]
        if isinstance(module.get_submodule(path), nn.ModuleList):
            return True
    return False


def _fits(layer: nn.Linear, kind: str) -> bool:
    if kind == "fp8":
        return layer.in_features % FP8_MULTIPLE == layer.out_features % FP8_MULTIPLE == 0
    return kind != "nf4" or layer.weight.numel() % NF4_BLOCK == 0


def _by_rows(matrix: torch.Tensor, most: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the matrix with every row scaled so that its largest value is `most`, and what to multiply the rows by:
    (rows, columns) and (rows, 1), float32."""
    matrix = matrix.float()
    scale = matrix.abs().amax(1, keepdim=True).div_(most).clamp_(min=torch.finfo(torch.float32).tiny)
    return matrix / scale, scale


@functools.cache
def _nf4_pairs(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the two values that each byte stands for: (256, 2)."""
    table = torch.tensor(NF4, dtype=dtype, device=device)
    return torch.stack([table.repeat_interleave(len(NF4)), table.repeat(len(NF4))], 1)


def _fixed(tensor: torch.Tensor) -> nn.Parameter:
    """A parameter rather than a buffer: those that move weights between devices keep account of parameters."""
    return nn.Parameter(tensor, requires_grad=False)
