"""Runs one network in a process of its own, so that its memory is its own: `python -m bench.one_network JSON`.

JSON is that of a `Run`; the last line that is printed is a JSON object. Imports torch only to run torch.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.core.placement import Placement
from limner.engine.session import open_session
from limner.runtime.cpus import cpu_count

TURNS = 5

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Run:
    """What is run, and where its outputs go."""

    model: str
    number: int  # of the network among its model's
    weights: str  # the checkpoint, for torch
    onnx: str  # the file, for the others
    inputs: str  # an .npz
    outputs: str  # an .npz; arrays are named 0, 1, ...
    engine: str  # `torch`, `onnxruntime`, `openvino`
    precision: str

    def start(self) -> dict[str, Any]:
        """Run it in a process of its own; return what is printed there, or {"error": its last line}."""
        command = [sys.executable, "-m", "bench.one_network", json.dumps(asdict(self))]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            return {"error": (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]}
        result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return result


def _torch(run: Run) -> Callable[[Arrays], list[NDArray[Any]]]:
    import torch

    from limner.export.exports import EXPORTS

    torch.set_num_threads(cpu_count())
    export = EXPORTS[run.model][run.number]
    network = export.network()
    network.load_state_dict(torch.load(run.weights, weights_only=True))
    network = export.wrap(network).eval()

    def forward(inputs: Arrays) -> list[NDArray[Any]]:
        with torch.no_grad():
            outputs = network(*map(torch.from_numpy, inputs.values()))
        return [output.numpy() for output in ([outputs] if torch.is_tensor(outputs) else outputs)]

    return forward


def _peak_mib() -> float:
    """Return the most memory that this process has had. `getrusage` would count its parent's from before the start."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def main() -> None:
    run = Run(**json.loads(sys.argv[1]))
    with np.load(run.inputs) as stored:
        inputs = dict(stored)
    if run.engine == "torch":
        forward = _torch(run)
    else:
        session = open_session(Path(run.onnx), Placement("cpu", run.precision, run.engine, "to measure it"))
        inputs = {name: inputs[name] for name in session.input_names}
        forward = session.run
    seconds = []
    for _ in range(1 + TURNS):  # the first one warms up
        began = time.perf_counter()
        outputs = forward(inputs)
        seconds.append(time.perf_counter() - began)
    np.savez(run.outputs, **{str(index): output for index, output in enumerate(outputs)})  # type: ignore[arg-type]
    print(json.dumps({"ms": round(statistics.median(seconds[1:]) * 1000, 1), "peak_mib": round(_peak_mib())}))


if __name__ == "__main__":
    main()
