"""A LoRA in memory: small additions to a model's layers (Hu et al., 2021). Knows neither files nor models."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

_serials = itertools.count()


@dataclass(frozen=True)
class LowRank:
    """What is added to one linear layer: `scale * up(down(x))`."""

    down: torch.Tensor  # (rank, in), floats, on the CPU
    up: torch.Tensor  # (out, rank)
    scale: float  # the file's alpha divided by the rank


@dataclass(frozen=True, eq=False)
class Lora:
    """Everything of one file. Two that were read from the same file are two."""

    name: str
    layers: Mapping[str, Mapping[str, LowRank]]  # component ("transformer", "text_encoder", ...), path as in diffusers
    serial: int = field(default_factory=_serials.__next__)  # tells it from all others of this process

    @property
    def byte_count(self) -> int:
        """What its tensors take."""
        layers = [layer for component in self.layers.values() for layer in component.values()]
        return sum(tensor.nbytes for layer in layers for tensor in (layer.down, layer.up))


@dataclass(frozen=True)
class ScaledLora:
    """A LoRA, and how strongly it is applied."""

    lora: Lora
    scale: float = 1.0
