"""Every inpainting network by every engine in every precision: median time, difference from fp32, peak memory.

LaMa's weights are those of `bench.realistic`. The others' are drawn at random: their times and memory are right, their
differences say little, since outputs of random networks lie in a narrow range.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench import pictures
from bench.one_network import Arrays, Run
from limner.engine.fetch import StoreError
from limner.engine.machine import this_machine
from limner.engine.networks import OWN_FILES, in_precision
from limner.engine.store import Store
from limner.export.exports import EXPORTS, Export
from limner.export.importer import import_files
from limner.inpaint.models import MODELS

SIDES = (256, 512)
RUNS = (
    ("torch", "fp32"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
"""Engines and precisions; torch comes first, since the others' outputs are compared with its."""

Row = dict[str, Any]
Tell = Callable[[str], None]


def weights_file(folder: Path, model: str, name: str) -> Path:
    """Return where a checkpoint lies while its model is measured; `name` is that of the card's file."""
    return folder / f"{model}.{name}.pth"


def measure(store: Store, folder: Path, tell: Tell) -> list[Row]:
    """Return a row for every network, size, engine and precision that this machine can run.

    Models that are not in the store get random weights there. `folder` holds the checkpoints of those that are.
    """
    rows: list[Row] = []
    measured: set[object] = set()  # anime-lama's network is LaMa's
    for model, exports in EXPORTS.items():
        if exports[0].network in measured or not _is_installed(store, model, folder, tell):
            continue
        measured.add(exports[0].network)
        for number, export in enumerate(exports):
            for inputs in _inputs(export):
                rows += _rows(store, folder, model, number, inputs, tell)
    return rows


def _is_installed(store: Store, model: str, folder: Path, tell: Tell) -> bool:
    """Import random weights for a model that has none, and say whether it is in the store now."""
    card = MODELS[model].CARD
    if not store.missing(card):
        return True
    networks = {export.file: export.network for export in EXPORTS[model]}
    paths = {name: weights_file(folder, model, name) for name in networks}
    for name, path in paths.items():
        torch.manual_seed(0)
        torch.save(networks[name]().state_dict(), path)
    try:
        import_files(
            store,
            card,
            [paths[file.name] for file in card.files],
            accept_licence=True,
            precisions=("bf16", "int8"),
            tell=tell,
        )
    except StoreError as error:
        tell(f"{model} is left out: {error}")
        return False
    return True


def _inputs(export: Export) -> list[Arrays]:
    """Return the example's inputs, or a photograph in every size of `SIDES` where the network takes any."""
    torch.manual_seed(0)
    example = {name: values.numpy() for name, values in export.inputs().items()}
    if set(example) == {"image", "mask"}:
        is_free = 2 in export.dynamic.get("image", {})
        return [_photograph(side) for side in (SIDES if is_free else example["image"].shape[2:3])]
    return [example]


def _photograph(side: int) -> Arrays:
    image = pictures.held_out(side).astype(np.float32).transpose(2, 0, 1)[None] / 255
    mask = np.zeros((1, 1, side, side), np.float32)
    mask[:, :, side // 3 : side * 2 // 3, side // 3 : side * 2 // 3] = 1
    return {"image": image, "mask": mask}


def _rows(store: Store, folder: Path, model: str, number: int, inputs: Arrays, tell: Tell) -> list[Row]:
    """Return one network's rows at one size."""
    export = EXPORTS[model][number]
    given, found = folder / "inputs.npz", folder / "outputs.npz"
    np.savez(given, **inputs)  # type: ignore[arg-type]
    size = "×".join(map(str, next(iter(inputs.values())).shape))
    machine = this_machine()
    rows: list[Row] = []
    expected: Arrays = {}
    for engine, precision in RUNS:
        onnx = store.folder(MODELS[model].CARD) / in_precision(export.onnx, precision)
        is_here = engine in ("torch", *machine.engines) and (precision != "bf16" or machine.bf16_unit)
        if not is_here or (precision in OWN_FILES and not onnx.is_file()):
            continue
        tell(f"{model} {export.onnx} {size}: {engine} {precision}")
        weights = str(weights_file(folder, model, export.file))
        figures = Run(model, number, weights, str(onnx), str(given), str(found), engine, precision).start()
        if "error" not in figures:
            with np.load(found) as outputs:
                drawn = dict(outputs)
            expected = expected or drawn
            figures["difference"] = round(
                difference(drawn, expected, inputs.get("mask") if export.outputs == ("filled",) else None), 6
            )
        rows.append(
            {"model": model, "network": export.onnx, "input": size, "engine": engine, "precision": precision, **figures}
        )
    return rows


def difference(drawn: Arrays, expected: Arrays, mask: NDArray[Any] | None) -> float:
    """Return the mean absolute difference of what a network puts out; of one that fills holes, in the hole alone, and
    of pictures cut to [0, 1]."""
    if mask is not None:
        hole = np.broadcast_to(mask > 0, expected["0"].shape)
        return float(np.abs(drawn["0"].clip(0, 1) - expected["0"].clip(0, 1))[hole].mean())
    apart = [np.abs(drawn[name].astype(np.float64) - expected[name]).ravel() for name in expected]
    return float(np.concatenate(apart).mean())
