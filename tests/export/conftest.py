"""A network of two convolutions that fills holes, and a card of its weights on this disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from limner.core.card import ModelCard, WeightFile
from limner.engine.store import Store, digest
from limner.export.exports import EXPORTS, Export


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 5, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 3, 3, padding=1)
        self.register_buffer("middle", torch.full((1,), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.last(torch.relu(self.norm(self.first(x))))) * self.middle * 2


class TinyFill(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.network(torch.cat([image * (1 - mask), mask], 1))


AXES = {0: "batch", 2: "height", 3: "width"}
EXPORT = Export(
    file="tiny.pth",
    onnx="network.onnx",
    network=Tiny,
    prefixes=("model.", ""),
    wrap=TinyFill,
    inputs=lambda: {"image": torch.rand(1, 3, 32, 32), "mask": torch.zeros(1, 1, 32, 32)},
    outputs=("filled",),
    dynamic={"image": AXES, "mask": AXES, "filled": AXES},
    beside=("discriminator.",),
)


def tiny(seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    return Tiny().eval()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The published file: a state dict of the network, on disk."""
    path = tmp_path / "published" / "tiny.pth"
    path.parent.mkdir()
    torch.save(tiny().state_dict(), path)
    return path


@pytest.fixture
def card(weights: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCard:
    """The card of that file, for which the importer knows what to do."""
    monkeypatch.setitem(EXPORTS, "tiny", (EXPORT,))
    file = WeightFile("tiny.pth", weights.as_uri(), digest(weights, "md5"), weights.stat().st_size)
    return ModelCard(
        "tiny",
        "inpaint",
        "Fills holes.",
        "Apache-2.0",
        "https://example.org/tiny",
        (file,),
        exports=("network.onnx",),
        precisions=("fp32", "bf16", "fp16", "int8"),
    )


@pytest.fixture
def two_networks(card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> ModelCard:
    """A card of two files, `tiny.pth` and `other.pth`, each its own ONNX file."""
    second = dataclasses.replace(EXPORT, file="other.pth", onnx="other.onnx")
    monkeypatch.setitem(EXPORTS, "tiny", (EXPORT, second))
    file = dataclasses.replace(card.files[0], name="other.pth")
    return dataclasses.replace(card, files=(*card.files, file), exports=("network.onnx", "other.onnx"))


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """`save({"name": tensor}, "x.pth")`: a checkpoint on disk."""

    def save(tensors: dict[str, Tensor], name: str = "mine.pth") -> Path:
        torch.save(tensors, tmp_path / name)
        return tmp_path / name

    return save
