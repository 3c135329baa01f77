"""Watches for values that are no numbers, and keeps the host close to the device. Knows no samplers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch

from limner.diffusion.faults import no_numbers
from limner.diffusion.sd3.row import Sd3Row

_AHEAD = 1  # steps that the device may have before it beyond the one that it does


class _Sent(NamedTuple):
    done: torch.cuda.Event
    finite: torch.Tensor  # bool (rows,), on the host once it is done
    rows: tuple[Sd3Row, ...]
    steps: tuple[int, ...]


class Watch:
    """On CUDA the host sends a step while the device does the one before: it waits for none, and is told of faults a
    step or two later. It is never further ahead, or cancelling would come too late."""

    def __init__(self, device: torch.device) -> None:
        self._later = device.type == "cuda"
        self._sent: deque[_Sent] = deque()

    def see(self, rows: Sequence[Sd3Row], latents: torch.Tensor) -> None:
        """Look at the rows' latents, (rows, 16, height / 8, width / 8), after the step that `row.step` tells. A row
        whose values are no numbers gets a `fault`, now or later."""
        finite = torch.isfinite(latents).flatten(1).all(1)
        steps = tuple(row.step for row in rows)
        if not self._later:
            _tell(rows, steps, finite.tolist())
            return
        on_host = finite.to("cpu", non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._sent.append(_Sent(done, on_host, tuple(rows), steps))

    def catch_up(self) -> None:
        """Wait until the device has all but the last of the steps behind it."""
        while len(self._sent) > _AHEAD:
            sent = self._sent.popleft()
            sent.done.synchronize()
            _tell(sent.rows, sent.steps, sent.finite.tolist())


def _tell(rows: Sequence[Sd3Row], steps: Sequence[int], finite: Sequence[bool]) -> None:
    for row, step, fine in zip(rows, steps, finite, strict=True):
        if not fine and row.fault is None:
            row.fault = no_numbers(step, row.step_count)
