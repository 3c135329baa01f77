"""What a training run goes on from, and how long it may go on. Knows no network and no data.

checkpoint = Checkpoint(out / "checkpoint.pt", {"network": network, "optimiser": optimiser, "average": average}, random)
checkpoint.resume()
with Budget(minutes=30) as budget:
    while budget.left() and checkpoint.step < steps:
        ...
        checkpoint.step += 1
        if budget.due("save", seconds=180):
            checkpoint.save(budget.seconds())
checkpoint.save(budget.seconds())
"""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn


class Stateful(Protocol):
    """A network, an optimiser, a schedule: what gives its state and takes it back."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Checkpoint:
    """A file of everything that a run is made of: its parts' states, the random numbers', and how far it is.

    `step` counts from 0, `seconds` is the training time of all runs so far, `best` the best held-out score (higher is
    better). The caller sets them; `resume` reads them.
    """

    def __init__(self, path: Path, parts: Mapping[str, Stateful], random: np.random.Generator) -> None:
        self.path = path
        self.parts = dict(parts)
        self.random = random
        self.step = 0
        self.seconds = 0.0
        self.best = float("-inf")

    def resume(self) -> bool:
        """Take everything from the file and say True; without a file, leave everything and say False."""
        if not self.path.exists():
            return False
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(saved["parts"][name])
        self.random.bit_generator.state = json.loads(saved["random"])
        torch.set_rng_state(saved["torch_random"])
        self.step, self.seconds, self.best = saved["step"], saved["seconds"], saved["best"]
        return True

    def save(self, seconds: float = 0.0) -> None:
        """Write the file in one move: whenever the process ends, there is a whole one.

        `seconds` is how long this run has taken since it resumed or last saved; it is added to those saved.
        """
        self.seconds += seconds
        write(
            self.path,
            {
                "parts": {name: part.state_dict() for name, part in self.parts.items()},
                "random": json.dumps(self.random.bit_generator.state),
                "torch_random": torch.get_rng_state(),
                "step": self.step,
                "seconds": self.seconds,
                "best": self.best,
            },
        )


def write(path: Path, state: object) -> None:
    """Save what `torch.save` takes at `path`, by way of a file beside it, so that `path` is never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    torch.save(state, beside)
    beside.replace(path)


class Budget:
    """The time that a run may take. Ends early, but in order, at SIGTERM and SIGINT: within `with`, these only tell.

    A second signal of the same kind ends the process as it would without this.
    """

    def __init__(self, minutes: float) -> None:
        self._began = time.monotonic()
        self._ends = self._began + 60 * minutes
        self._counted = self._began
        self._last: dict[str, float] = {}
        self._before: dict[signal.Signals, Any] = {}
        self._told = False

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def left(self) -> bool:
        """Say whether there is time for another step."""
        return not self._told and time.monotonic() < self._ends

    def spent(self) -> float:
        """Return which part of the budget is used, 0 to 1."""
        total = self._ends - self._began
        return min(1.0, (time.monotonic() - self._began) / total) if total > 0 else 1.0

    def seconds(self) -> float:
        """Return the seconds since the start or since this was last asked."""
        now = time.monotonic()
        passed, self._counted = now - self._counted, now
        return passed

    def due(self, what: str, seconds: float) -> bool:
        """Say True once every so many seconds, first when they have passed since the start."""
        now = time.monotonic()
        if now - self._last.get(what, self._began) < seconds:
            return False
        self._last[what] = now
        return True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._told = True
        signal.signal(number, self._before[signal.Signals(number)])


class Average:
    """The moving average of a network's weights, which scores better than the weights themselves.

    `network` is the averaged copy, always in `eval`; buffers (the statistics of batch norms) are averaged too, counts
    are copied. The decay grows from 0 to `decay`, so that the first, bad weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged, current = [], []
        for mine, new in zip(_tensors(self.network), _tensors(network), strict=True):
            if mine.is_floating_point():
                averaged.append(mine)
                current.append(new.to(mine.dtype))
            else:
                mine.copy_(new)
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.network.load_state_dict(state_dict["network"])
        self.updates = state_dict["updates"]


def _tensors(network: nn.Module) -> Iterable[Tensor]:
    return [*network.parameters(), *network.buffers()]
