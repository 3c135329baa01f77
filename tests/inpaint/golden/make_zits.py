"""Makes zits.npz and zits.names.txt from the original code; README.md says how it is run and what it stands on.

python -m tests.inpaint.golden.make_zits PATH_TO_A_CHECKOUT_OF_ZITS PATH_TO_A_CHECKOUT_OF_IOPAINT
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

from tests.inpaint.golden.weights import holes, pictures
from tests.inpaint.golden.zits_weights import (
    SCORES,
    SEGMENTS,
    drawings,
    logits,
    position_holes,
    scene,
    scratch,
    zits_weights,
)

INPAINT_SHAPES = {"square": (1, 256, 256), "batch": (2, 64, 96)}  # pictures, height, width
SCENE = (288, 320)
STRIDE = 3


def stub(*packages: str) -> None:
    """Stand in for what a module imports and its networks don't use."""
    for package in packages:
        sys.modules[package] = MagicMock()


def main(checkout: Path, peer: Path) -> None:
    sys.path[:0] = [str(checkout), str(peer)]
    stub("src.losses.adversarial", "src.losses.feature_matching", "src.losses.perceptual", "src.utils")
    stub("loguru", "iopaint.const", "iopaint.schema", "iopaint.model.base")
    sys.modules["iopaint.model.base"].InpaintModel = object
    package = types.ModuleType("iopaint.model")  # whose own __init__ would import every model
    package.__path__ = [str(peer / "iopaint" / "model")]
    sys.modules["iopaint.model"] = package

    from src.models.FTR_model import DefaultInpaintingTrainingModule
    from src.models.LaMa import ReZeroFFC, StructureEncoder
    from src.models.TSR_model import EdgeLineGPT256RelBCE, EdgeLineGPTConfig
    from src.models.upsample import StructureUpsampling

    sizes = {"n_embd": 256, "block_size": 32, "n_layer": 16, "n_head": 8}
    edge_line = EdgeLineGPT256RelBCE(EdgeLineGPTConfig(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0, **sizes))
    upsample = StructureUpsampling()
    config = SimpleNamespace(rezero_for_mpe=True, use_MPE=True, rel_pos_num=128)
    inpaint = torch.nn.Module()
    inpaint.config = config
    inpaint.str_encoder, inpaint.generator = StructureEncoder(config), ReZeroFFC(config)

    names: list[str] = []
    for title, network in (("edge_line", edge_line), ("structure_upsample", upsample), ("inpaint", inpaint)):
        constants = {name: value for name, value in network.state_dict().items() if name.endswith("attn.mask")}
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if name not in constants}
        weights = {name: torch.from_numpy(value) for name, value in zits_weights(shapes).items()}
        network.load_state_dict({**weights, **constants})
        network.eval()
        names += [
            f"{title} {name} {'x'.join(map(str, value.shape))}".rstrip() for name, value in network.state_dict().items()
        ]

    def inpainted(image: Any, mask: Any, edge: Any, line: Any, rel_pos: Any, direct: Any) -> Any:
        batch = {"image": image, "mask": mask, "edge": edge, "line": line, "rel_pos": rel_pos, "direct": direct}
        return DefaultInpaintingTrainingModule.forward(inpaint, batch)["predicted_image"]

    outputs: dict[str, np.ndarray] = {}
    with torch.no_grad():
        image, mask = torch.from_numpy(pictures(2, 256, 256)) * 2 - 1, torch.from_numpy(holes(2, 256, 256))
        found = [torch.from_numpy(drawings(2, 256, 256, seed)) for seed in (1, 2)]
        drawn = edge_line.forward_with_logits(image, *found, masks=mask)
        for name, value in zip(("edge_logits", "line_logits"), drawn, strict=True):
            outputs[name] = value.numpy()[..., ::STRIDE, ::STRIDE]
        outputs["upsampled"] = upsample(torch.from_numpy(drawings(2, 32, 48)))[0].numpy()

        from iopaint.helper import pad_img_to_modulo
        from iopaint.model import zits

        for count, height, width in INPAINT_SHAPES.values():
            coded = [
                zits.load_masked_position_encoding(np.uint8(255) * hole[0])
                for hole in np.uint8(holes(count, height, width))
            ]
            rel_pos, direct = (
                torch.from_numpy(np.stack(maps)).long() for maps in (zip(*((c[0], c[2]) for c in coded), strict=True))
            )
            image, mask = pictures(count, height, width), holes(count, height, width)
            edge, line = drawings(count, height, width, 1), drawings(count, height, width, 2)
            filled = inpainted(*map(torch.from_numpy, (image, mask, edge, line)), rel_pos, direct)
            outputs[f"inpaint_{count}"] = filled.numpy()[..., ::STRIDE, ::STRIDE]

        for name, hole in position_holes().items():
            rel_pos, _, direct = zits.load_masked_position_encoding(hole * np.uint8(255))
            outputs[f"positions_{name}"] = np.dstack([rel_pos, direct]).astype(np.uint8)

        pipeline = object.__new__(zits.ZITS)
        pipeline.device, pipeline.sample_edge_line_iterations = torch.device("cpu"), 1
        pipeline.edge_line = lambda *_, **__: [torch.from_numpy(logits(1, 256, seed)) for seed in (3, 4)]
        found = [torch.from_numpy(drawings(1, 256, 256, seed)) for seed in (1, 2)]
        context = [torch.zeros(1, 3, 256, 256), (found[0] > 0.5).float(), found[1]]
        hole = torch.from_numpy(scratch(256, 256)[None, None].astype(np.float32))
        edge, line = pipeline.sample_edge_line_logits(context, mask=hole, iterations=1, add_v=0.05, mul_v=4)
        outputs["drawn_on_edge"], outputs["drawn_on_line"] = (
            np.packbits(edge.numpy() > 0),
            line.numpy()[..., ::STRIDE, ::STRIDE],
        )

        pipeline.edge_line = edge_line.forward_with_logits
        pipeline.structure_upsample = lambda drawing: upsample(drawing)[0]
        lines = {"lines_pred": torch.from_numpy(SEGMENTS), "lines_score": torch.from_numpy(SCORES)}
        pipeline.wireframe = lambda _: {"num_proposals": len(SCORES), **lines}
        seen: list[Any] = []
        pipeline.inpaint = lambda *inputs: seen.append((inputs, inpainted(*inputs))) or seen[-1][1]
        padded = {"mod": 32, "square": True, "min_size": 256}  # what the class says of itself
        picture = pad_img_to_modulo(scene(*SCENE), **padded)
        cover = pad_img_to_modulo(scratch(*SCENE) * np.uint8(255), **padded)
        for name, wanted in (("off", False), ("on", True)):
            pipeline.forward(picture, cover, SimpleNamespace(zits_wireframe=wanted))
            (_, _, edge, line, _, _), filled = seen[-1]
            outputs[f"chain_{name}"] = filled.numpy()[..., : SCENE[0], : SCENE[1]][..., ::STRIDE, ::STRIDE]
        outputs["chain_edge"], outputs["chain_line"] = (
            value.numpy()[..., ::STRIDE, ::STRIDE] for value in (edge, line)
        )

    here = Path(__file__).parent
    np.savez_compressed(here / "zits.npz", **outputs)
    (here / "zits.names.txt").write_text("\n".join(names) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
