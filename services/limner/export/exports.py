"""Which network each published file of weights belongs to, and which ONNX file is made of it.

Knows no checkpoint's format and no store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limner.export.networks import migan


@dataclass(frozen=True)
class Export:
    """One file of a card, the network that its tensors are loaded into, and the ONNX file that is written of it."""

    file: str  # a WeightFile's name in the card
    onnx: str  # one of the card's exports, such as `network.onnx`
    network: Callable[[], nn.Module]  # its parameters have the published names
    prefixes: tuple[str, ...]  # what may stand before these names in the file, in the order in which they are tried
    wrap: Callable[[nn.Module], nn.Module]  # returns what is written: it takes `inputs` and gives `outputs`
    inputs: Callable[[], dict[str, Tensor]]  # an example, small
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]  # axes that may differ from the example's: {"image": {0: "batch"}}
    beside: tuple[str, ...] = ()  # beginnings of names that only training needs, such as `discriminator.`


EXPORTS: dict[str, tuple[Export, ...]] = {
    "migan": (
        Export(
            file="migan_traced.pt",
            onnx="network.onnx",
            network=migan.Migan,
            prefixes=("", "model.", "generator."),
            wrap=migan.MiganFill,
            inputs=lambda: {
                "image": torch.rand(1, 3, migan.SIZE, migan.SIZE),
                "mask": torch.zeros(1, 1, migan.SIZE, migan.SIZE),
            },
            outputs=("filled",),
            dynamic={"image": {0: "batch"}, "mask": {0: "batch"}, "filled": {0: "batch"}},
        ),
    ),
}
"""By the model's name; one for each file of its card, in the card's order."""
