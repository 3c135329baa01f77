"""Makes migan.npz and migan.names.txt from the original code; README.md says how it is run and what it stands on.

python -m tests.inpaint.golden.make_migan PATH_TO_A_CHECKOUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from tests.inpaint.golden.migan_weights import CONSTANTS, migan_weights
from tests.inpaint.golden.weights import holes, pictures

SIZE = 512
BATCHES = {"native": 1, "batch": 2}
STRIDE = 5  # odd: what goes wrong in every other row or column is seen


def main(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    from lib.model_zoo.migan_inference import Generator

    network = Generator(resolution=SIZE).eval()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    weights = migan_weights(shapes)
    left = network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    assert all(name.endswith(CONSTANTS) for name in left.missing_keys)
    outputs = {}
    for name, count in BATCHES.items():
        picture = 2 * torch.from_numpy(pictures(count, SIZE, SIZE)) - 1
        mask = torch.from_numpy(holes(count, SIZE, SIZE))
        with torch.no_grad():
            drawn = network(torch.cat([0.5 - mask, picture * (1 - mask)], 1)).numpy()
        outputs[name] = drawn[:, :, ::STRIDE, ::STRIDE]
    here = Path(__file__).parent
    np.savez_compressed(here / "migan.npz", **outputs)
    lines = (f"{name} {'x'.join(map(str, shape))}".rstrip() for name, shape in shapes.items())
    (here / "migan.names.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
