"""Makes zits_wireframe.npz and zits_wireframe.names.txt from the original code; README.md says how it is run and what
it stands on.

python -m tests.inpaint.golden.make_zits_wireframe CHECKOUT
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import torch

from tests.inpaint.golden.weights import holes, pictures
from tests.inpaint.golden.zits_wireframe_weights import wireframe_weights

STRIDE = 7  # of the kept rows, columns and features
SIDE = 512
LIKELY = 0.85
MEAN, DEVIATION = (109.730, 103.832, 98.681), (22.275, 22.124, 23.229)


class Settings(types.SimpleNamespace):
    """What yacs' CfgNode is to the original: a place for attributes."""

    def __init__(self, new_allowed: bool = False) -> None:
        super().__init__()


def drawing(lines: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the peer's canvas, (256, 256) uint8, by scikit-image."""
    from skimage.draw import line_aa

    canvas = np.zeros((256, 256))
    for x0, y0, x1, y1 in (lines[scores > LIKELY] * 256).astype(int):
        rows, columns, values = line_aa(y0, x0, y1, x1)
        canvas[rows, columns] = np.maximum(canvas[rows, columns], values)
    return (canvas * 255).astype(np.uint8)


def main(checkout: Path) -> None:
    stub = types.ModuleType("yacs.config")
    stub.CfgNode = Settings
    sys.modules.update({"yacs": types.ModuleType("yacs"), "yacs.config": stub})
    sys.path.insert(0, str(checkout))
    from src.lsm_hawp.detector import WireframeDetector

    network = WireframeDetector(is_cuda=False).eval()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    image = np.rint(pictures(1, SIDE, SIDE) * 255).astype(np.float32)
    mask = torch.from_numpy(holes(1, SIDE, SIDE))
    picture = (torch.from_numpy(image) * (1 - mask) + 127.5 * mask - mean) / deviation

    outputs = {}
    for name, few_junctions in (("many", False), ("few", True)):
        weights = wireframe_weights(shapes, few_junctions=few_junctions)
        tensors = {key: torch.from_numpy(value) for key, value in weights.items()}
        network.load_state_dict({"tspan": network.tspan, **tensors})
        with torch.no_grad():
            maps, features = network.backbone(picture)
            found = network(picture)
        outputs[f"{name}_lines"] = found["lines_pred"].numpy()
        outputs[f"{name}_scores"] = found["lines_score"].numpy()
        if name == "many":
            outputs["maps"] = maps[0].numpy()[:, :, ::STRIDE, ::STRIDE]
            outputs["features"] = network.fc1(features).detach().numpy()[:, ::STRIDE, ::STRIDE, ::STRIDE]
            outputs["drawing"] = drawing(outputs["many_lines"], outputs["many_scores"])
    here = Path(__file__).parent
    np.savez_compressed(here / "zits_wireframe.npz", **outputs)
    lines = (f"{name} {'x'.join(map(str, shape))}".rstrip() for name, shape in shapes.items())
    (here / "zits_wireframe.names.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
