"""Writes `limner-erase` as the server loads it: `python -m training.erase.export [--out DIR] [--to FILE]`.

The file computes in float32; its weights are kept in float16, and turned into float32 when it is loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from limner.core.placement import Placement
from limner.engine.session import open_session
from limner.export.onnx_file import write_onnx
from training.erase.network import ErasingLama
from training.manifest import WEIGHTS, write_manifest
from training.sources import OUT

TO = WEIGHTS / "limner-erase/network.onnx"
MOST_BYTES = 12_000_000
_PICTURE = {0: "batch", 2: "height", 3: "width"}
_LARGE = 256  # values: smaller constants stay as they are
_CLOSE = 0.02  # of 1: how far the file may be from the network, whose weights have more digits, at any pixel


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.erase.export", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT / "erase", help="the run's folder (default: %(default)s)")
    parser.add_argument("--to", type=Path, default=TO, help="the file to write (default: %(default)s)")
    asked = parser.parse_args(arguments)
    best = torch.load(asked.out / "best.pt", map_location="cpu", weights_only=True)
    network = ErasingLama()
    network.load_state_dict(best["network"])
    asked.to.parent.mkdir(parents=True, exist_ok=True)
    export(network, asked.to)
    apart = difference(network, asked.to)
    print(f"{asked.to}: step {best['step']}, held out {best['psnr']:.2f} dB, {asked.to.stat().st_size / 1e6:.2f} MB,")
    print(f"at most {apart:.5f} from the network")
    if apart > _CLOSE:
        raise SystemExit("the file doesn't do what the network does")
    if asked.to.resolve().is_relative_to(WEIGHTS.resolve()):
        write_manifest()


def export(network: ErasingLama, path: Path) -> None:
    """Write the network to `path`: `image`, `mask` in, `filled` out, for any batch, height and width.

    ValueError if the file is larger than what ships.
    """
    example = {"image": torch.rand(1, 3, 64, 72), "mask": torch.zeros(1, 1, 64, 72)}
    dynamic = {"image": _PICTURE, "mask": _PICTURE, "filled": _PICTURE}
    write_onnx(network, example, ("filled",), path, dynamic=dynamic)
    halve(path)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, and {MOST_BYTES} may ship")


def halve(path: Path) -> None:
    """Store the large constants of an ONNX file in float16, each with a Cast behind it that gives float32 again."""
    model = onnx.load(path)
    casts = []
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant)
        if values.dtype == np.float32 and values.size >= _LARGE:
            name = constant.name
            constant.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    onnx.save(model, path)


def difference(network: ErasingLama, path: Path) -> float:
    """Return how far a file's fills are from its network's at most, at other sizes than it was written with."""
    session = open_session(path, Placement("cpu", "fp32", "onnxruntime", "to compare it"))
    torch.manual_seed(0)
    apart = 0.0
    for count, height, width in ((1, 64, 64), (2, 96, 72)):
        image = torch.nn.functional.interpolate(torch.rand(count, 3, 6, 6), (height, width), mode="bicubic").clamp(0, 1)
        mask = torch.zeros(count, 1, height, width)
        mask[:, :, 20:44, 24:40] = 1
        with torch.no_grad():
            expected = network.eval()(image, mask).numpy()
        found = session.run({"image": image.numpy(), "mask": mask.numpy()})[0]
        apart = max(apart, float(np.abs(found - expected).max()))
    return apart


if __name__ == "__main__":
    main()
