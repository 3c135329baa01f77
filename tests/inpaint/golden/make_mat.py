"""Makes mat.npz and mat.names.txt by the original code; README.md says how it is run and what it stands on.

python -m tests.inpaint.golden.make_mat PATH_TO_A_CHECKOUT    # in the repository's root
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.inpaint.golden.mat_weights import CONSTANTS, LATENT, SIZE, Case, cases, kept, mat_weights

STRIDE = 3  # odd, so that every phase of a picture doubled in size is seen


def main(checkout: Path) -> None:
    network = original(checkout)
    outputs = {}
    for name, case in cases().items():
        filled = run(network, case)
        outputs[name] = filled[:, :, ::STRIDE, ::STRIDE]
    here = Path(__file__).parent
    np.savez_compressed(here / "mat.npz", **outputs)
    lines = (f"{name} {'x'.join(map(str, value.shape))}" for name, value in network.state_dict().items())
    (here / "mat.names.txt").write_text("\n".join(lines) + "\n")


def original(checkout: Path) -> Any:
    """Return the published generator with seeded weights, built as IOPaint builds it: without noise."""
    layers = types.ModuleType("timm.models.layers")
    layers.__dict__.update(DropPath=None, trunc_normal_=None, to_2tuple=lambda side: (side, side))
    sys.modules.update({"timm": layers, "timm.models": layers, "timm.models.layers": layers})
    sys.path.insert(0, str(checkout))
    from networks.mat import Generator

    network = Generator(LATENT, 0, LATENT, SIZE, 3, synthesis_kwargs={"use_noise": False})
    weights = mat_weights({name: tuple(value.shape) for name, value in network.state_dict().items()})
    rest = network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    assert not rest.unexpected_keys
    assert {name.rpartition(".")[2] for name in rest.missing_keys} == set(CONSTANTS)
    return network.eval().requires_grad_(False)


def run(network: Any, case: Case) -> NDArray[np.float32]:
    """Return what the original puts out, (n, 3, 512, 512), with its two draws fixed."""
    maps = {shape: torch.from_numpy(values) for shape, values in kept().items()}
    inputs = (torch.from_numpy(values) for values in (case.image * 2 - 1, 1 - case.mask, case.latent))
    dropout = torch.nn.functional.dropout
    torch.nn.functional.dropout = lambda halves, training: 2 * halves * maps[tuple(halves.shape[1:])]
    try:
        return np.asarray(network(*inputs, None, truncation_psi=1, noise_mode="none"))
    finally:
        torch.nn.functional.dropout = dropout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
