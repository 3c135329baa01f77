"""Makes lama.npz and lama.names.txt from the original code; README.md says how it is run and what it stands on.

python -m tests.inpaint.golden.make_lama CHECKOUT
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import torch

from tests.inpaint.golden.lama_weights import lama_weights
from tests.inpaint.golden.weights import holes, pictures

STRIDE = 3  # of the kept rows and columns
SHAPES = {"native": (1, 256, 256), "odd": (1, 104, 168), "batch": (3, 40, 64)}  # pictures, height, width
RATIOS = {
    "init_conv_kwargs": {"ratio_gin": 0, "ratio_gout": 0, "enable_lfu": False},
    "downsample_conv_kwargs": {"ratio_gin": 0, "ratio_gout": 0, "enable_lfu": False},
    "resnet_conv_kwargs": {"ratio_gin": 0.75, "ratio_gout": 0.75, "enable_lfu": False},
}  # configs/training/big-lama.yaml


def stub(package: str, attribute: str) -> None:
    """Stand in for what a module imports and big-lama doesn't use."""
    module = types.ModuleType(package)
    setattr(module, attribute, None)
    sys.modules[package] = module


def main(checkout: Path) -> None:
    stub("kornia.geometry.transform", "rotate")
    stub("pytorch_lightning", "seed_everything")
    sys.path.insert(0, str(checkout))
    from saicinpainting.training.modules.ffc import FFCResNetGenerator

    network = torch.nn.Module()
    network.generator = FFCResNetGenerator(4, 3, 64, 3, 18, add_out_act="sigmoid", **RATIOS)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict({name: torch.from_numpy(value) for name, value in lama_weights(shapes).items()})
    network.eval()

    outputs = {}
    for name, (count, height, width) in SHAPES.items():
        image, mask = torch.from_numpy(pictures(count, height, width)), torch.from_numpy(holes(count, height, width))
        with torch.no_grad():
            filled = network.generator(torch.cat([image * (1 - mask), mask], 1)).numpy()
        outputs[name] = filled[:, :, ::STRIDE, ::STRIDE]
    here = Path(__file__).parent
    np.savez_compressed(here / "lama.npz", **outputs)
    lines = (f"{name} {'x'.join(map(str, shape))}".rstrip() for name, shape in shapes.items())
    (here / "lama.names.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
