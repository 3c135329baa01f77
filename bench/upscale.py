"""What enlarging costs, and what each engine and precision changes: seconds a megapixel of the source, and levels of
255 between results. Runs the models in this process, without a server: it compares engines, not the way to them.

    python -m bench.upscale [--quick] [--model NAME]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.figures import Figures, table
from limner.core.codec import decode
from limner.core.errors import BadArgument, ModelNotInstalled
from limner.core.geometry import Box
from limner.core.picture import Picture
from limner.core.placement import Placement
from limner.engine.machine import this_machine
from limner.engine.store import Store
from limner.postprocess.models import MODELS
from limner.runtime.job import Job

PHOTOGRAPHS = {"demo.jpg": (480, 160), "nuthatch.jpg": (480, 240), "ladybird.jpg": (780, 300)}  # left, top
SCALE = 2
TILE_MEMORY = 512 << 20
NETWORKS = {"realesrgan-animevideov3": 384, "realesrgan-x4plus-anime": 160, "realesrgan-x4plus": 160}  # side in pixels
PLACEMENTS = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))


def measure(*, quick: bool, names: tuple[str, ...] = tuple(NETWORKS)) -> Figures:
    """Return seconds a megapixel by model, engine and precision, and the difference to ONNX Runtime's fp32."""
    figures: dict[str, float | int | str | bool] = {}
    photographs = list(PHOTOGRAPHS)[: 1 if quick else None]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("lanczos", *names):
            side = NETWORKS.get(name, 384)
            pictures = [_crop(photograph, side) for photograph in photographs]
            reference: list[np.ndarray] = []
            for engine, precision in PLACEMENTS if name in NETWORKS else (("pillow", "native"),):
                key = f"{name} {engine} {precision}"
                if name in NETWORKS and engine not in this_machine().engines:
                    continue
                try:
                    seconds, cpu_seconds, results = _run(
                        name, Placement("cpu", precision, engine, "bench"), pictures, Path(folder)
                    )
                except (ModelNotInstalled, BadArgument) as error:
                    figures[key] = error.message
                    continue
                megapixels = side * side / 1e6
                figures[f"{key} s/Mpx"] = round(seconds / megapixels, 2)
                figures[f"{key} CPU s/Mpx"] = round(cpu_seconds / megapixels, 2)  # where others use the CPU too
                if reference:
                    figures[f"{key} difference"] = _difference(results, reference)
                reference = reference or results
    return figures


def _run(
    name: str, placement: Placement, pictures: list[Picture], folder: Path
) -> tuple[float, float, list[np.ndarray]]:
    """Return the medians of a picture's seconds, by the clock and of CPU time, and the results."""
    upscaler = MODELS[name].load(placement, Store(folder))
    job = Job(seed=0, previews=False, deadline=None, publish=lambda *_: None)
    seconds, cpu_seconds, results = [], [], []
    for picture in (pictures[0], *pictures):  # the first one twice: engines make ready when they meet a shape
        began, began_cpu = time.perf_counter(), time.process_time()
        result = upscaler.upscale(picture, picture.size.scaled(SCALE), job, memory_bytes=TILE_MEMORY)
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - began_cpu)
        results.append(result.pixels)
    return statistics.median(seconds[1:]), statistics.median(cpu_seconds[1:]), results[1:]


def _difference(results: list[np.ndarray], reference: list[np.ndarray]) -> str:
    apart = [np.abs(one.astype(int) - two) for one, two in zip(results, reference, strict=True)]
    return f"mean {np.mean([each.mean() for each in apart]):.3f}, at most {max(each.max() for each in apart)} of 255"


def _crop(photograph: str, side: int) -> Picture:
    picture = decode(Path("assets", photograph).read_bytes())
    left, top = PHOTOGRAPHS[photograph]
    return Picture(np.ascontiguousarray(picture.pixels[Box(left, top, side, side).slices()]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.upscale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one photograph")
    parser.add_argument("--model", choices=NETWORKS, action="append", help="only this network; default: all")
    arguments = parser.parse_args()
    names = tuple(arguments.model or NETWORKS)
    print(table(f"upscale ×{SCALE}", measure(quick=arguments.quick, names=names)))


if __name__ == "__main__":
    main()
