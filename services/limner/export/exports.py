"""Which network each published file of weights belongs to, and which ONNX file is made of it.

Knows no checkpoint's format and no store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limner.export.networks import (
    lama,
    mat,
    migan,
    zits_edge_line,
    zits_inpaint,
    zits_structure_upsample,
    zits_wireframe,
)


@dataclass(frozen=True)
class Export:
    """One file of a card, the network that its tensors are loaded into, and the ONNX file that is written of it."""

    file: str  # a WeightFile's name in the card
    onnx: str  # one of the card's exports, such as `network.onnx`
    network: Callable[[], nn.Module]  # its parameters have the published names
    prefixes: tuple[str, ...]  # what may stand before these names in the file, in the order in which they are tried
    wrap: Callable[[Any], nn.Module]  # returns what is written: it takes `inputs` and gives `outputs`
    inputs: Callable[[], dict[str, Tensor]]  # an example, small
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]  # axes that may differ from the example's: {"image": {0: "batch"}}
    beside: tuple[str, ...] = ()  # beginnings of names that only training needs, such as `discriminator.`


_PICTURE = {0: "batch", 2: "height", 3: "width"}

# What ZITS' published files call the modules that they were made of is not known; these are the training code's names.
_WIREFRAME = ("", "model.", "lsm_hawp.", "module.")
_TRANSFORMER = ("", "model.", "transformer.", "edge_line.")
_UPSAMPLE = ("", "model.", "structure_upsample.")
_INPAINT = ("", "model.", "inpaint_model.", "inpaint.")


def _lama(file: str) -> Export:
    return Export(
        file=file,
        onnx="network.onnx",
        network=lama.Lama,
        prefixes=("", "model."),
        wrap=lama.LamaFill,
        inputs=lambda: {"image": torch.rand(1, 3, 64, 72), "mask": torch.zeros(1, 1, 64, 72)},
        outputs=("filled",),
        dynamic={"image": _PICTURE, "mask": _PICTURE, "filled": _PICTURE},
        beside=("discriminator.", "loss_", "val_evaluator.", "test_evaluator."),
    )


def _square(
    file: str, network: Callable[[], nn.Module], wrap: Callable[[Any], nn.Module], prefixes: tuple[str, ...], side: int
) -> Export:
    return Export(
        file=file,
        onnx="network.onnx",
        network=network,
        prefixes=prefixes,
        wrap=wrap,
        inputs=lambda: {"image": torch.rand(1, 3, side, side), "mask": torch.rand(1, 1, side, side).round()},
        outputs=("filled",),
        dynamic={"image": {0: "batch"}, "mask": {0: "batch"}, "filled": {0: "batch"}},
    )


EXPORTS: dict[str, tuple[Export, ...]] = {
    "lama": (_lama("big-lama.pt"),),
    "anime-lama": (_lama("anime-manga-big-lama.pt"),),
    "mat": (_square("Places_512_FullData_G.pth", mat.Mat, mat.MatFill, ("",), mat.SIZE),),
    "migan": (_square("migan_traced.pt", migan.Migan, migan.MiganFill, ("", "model.", "generator."), migan.SIZE),),
    "zits": (
        Export(
            file="zits-wireframe-0717.pt",
            onnx="wireframe.onnx",
            network=zits_wireframe.Wireframe,
            prefixes=_WIREFRAME,
            wrap=zits_wireframe.WireframeMaps,
            inputs=lambda: {"image": torch.rand(1, 3, 512, 512), "mask": torch.rand(1, 1, 512, 512).round()},
            outputs=("lines", "junctions", "offsets", "features"),
            dynamic={},
        ),
        Export(
            file="zits-wireframe-0717.pt",
            onnx="wireframe_scores.onnx",
            network=zits_wireframe.Wireframe,
            prefixes=_WIREFRAME,
            wrap=zits_wireframe.WireframeScores,
            inputs=lambda: {"features": torch.rand(3, 1024)},
            outputs=("scores",),
            dynamic={"features": {0: "line"}, "scores": {0: "line"}},
        ),
        Export(
            file="zits-edge-line-0717.pt",
            onnx="edge_line.onnx",
            network=zits_edge_line.EdgeLine,
            prefixes=_TRANSFORMER,
            wrap=lambda network: network,
            inputs=lambda: {
                "image": torch.rand(1, 3, 256, 256) * 2 - 1,
                "edge": torch.rand(1, 1, 256, 256).round(),
                "line": torch.rand(1, 1, 256, 256),
                "mask": torch.rand(1, 1, 256, 256).round(),
            },
            outputs=("edge_logits", "line_logits"),
            dynamic={name: {0: "batch"} for name in ("image", "edge", "line", "mask", "edge_logits", "line_logits")},
            beside=tuple(f"{prefix}blocks.{index}.attn.mask" for prefix in _TRANSFORMER for index in range(1, 16, 2)),
        ),
        Export(
            file="zits-structure-upsample-0717.pt",
            onnx="structure_upsample.onnx",
            network=zits_structure_upsample.StructureUpsample,
            prefixes=_UPSAMPLE,
            wrap=lambda network: network,
            inputs=lambda: {"drawing": torch.rand(1, 1, 64, 96)},
            outputs=("logits",),
            dynamic={
                "drawing": {0: "batch", 2: "height", 3: "width"},
                "logits": {0: "batch", 2: "twice_height", 3: "twice_width"},
            },
            beside=tuple(f"{prefix}out." for prefix in _UPSAMPLE),
        ),
        Export(
            file="zits-inpaint-0717.pt",
            onnx="inpaint.onnx",
            network=zits_inpaint.ZitsInpaint,
            prefixes=_INPAINT,
            wrap=lambda network: network,
            inputs=lambda: {
                "image": torch.rand(1, 3, 64, 96),
                "mask": torch.rand(1, 1, 64, 96).round(),
                "edge": torch.rand(1, 1, 64, 96),
                "line": torch.rand(1, 1, 64, 96),
                "rel_pos": torch.randint(zits_inpaint.POSITIONS, (1, 64, 96)),
                "direct": torch.rand(1, 4, 64, 96).round(),
            },
            outputs=("filled",),
            dynamic={
                **dict.fromkeys(("image", "mask", "edge", "line", "direct", "filled"), _PICTURE),
                "rel_pos": {0: "batch", 1: "height", 2: "width"},
            },
            beside=tuple(
                f"{prefix}{other}."
                for prefix in _INPAINT
                for other in ("transformer", "structure_upsample", "discriminator")
            ),
        ),
    ),
}
"""By the model's name; one for each of its card's exports."""
