"""Writes a torch network as an ONNX file. Knows no particular network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

OPSET = 18


def write_onnx(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    *,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """Write `network`, called with `inputs` in their order, to `path`.

    `dynamic` names the axes, by input and output, that may differ from the example's: {"image": {0: "batch"}}.
    The exporter is the one that records a run: the newer one takes ten times as long for these networks and writes
    the same operators.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of its deprecation, and of what a recorded run can't know of other sizes
        torch.onnx.export(
            network.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(axes) for name, axes in (dynamic or {}).items()},
            opset_version=OPSET,
            dynamo=False,
        )
    _use_shared_constants(path)


def _use_shared_constants(path: Path) -> None:
    """Let operators name their constants themselves. Of equal ones the exporter keeps one, and puts operators that copy
    it in the place of the others: a quantiser would take these for something that is computed."""
    model = onnx.load(path)
    constants = {constant.name for constant in model.graph.initializer}
    copies = [node for node in model.graph.node if node.op_type == "Identity" and node.input[0] in constants]
    originals = {copy.output[0]: copy.input[0] for copy in copies}
    if not originals:
        return
    for copy in copies:
        model.graph.node.remove(copy)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = originals.get(name, name)
    onnx.save(model, path)
