"""A call as its work sees it: seed, deadline, whether it is over, and where progress goes.

Work runs on other threads than the event loop, and nothing stops a thread from outside: work calls `check` (or a
stage's `step`) at every step or tile, and the call's end is raised there. Knows no gRPC and no queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from limner.core.errors import Cancelled, DeadlineExceeded
from limner.runtime.messages import duration
from limner.runtime.telemetry import tracer
from limner.v1 import images_pb2, progress_pb2


@dataclass
class Timing:
    """How long a part of the call took, in seconds."""

    stage: str
    seconds: float = 0.0


class Job:
    """Job(seed=7, previews=False, deadline=None, publish=mailbox.put); `deadline` is of time.monotonic()."""

    def __init__(
        self, *, seed: int, previews: bool, deadline: float | None, publish: Callable[[str, Any], None]
    ) -> None:
        self.seed = seed
        self.previews = previews  # whether the caller wants any; making them may be dear
        self.timings: list[Timing] = []  # in the order in which they began
        self.parameters: dict[str, str] = {}  # what the result was made from, for Finished; empty where nobody tells
        self._deadline = deadline
        self._publish = publish
        self._cancelled = False

    @property
    def remaining(self) -> float | None:
        """Seconds to the deadline, which may have passed; None without one."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def cancel(self) -> None:
        """End the work at its next check. Safe from any thread, and as often as one likes."""
        self._cancelled = True

    def check(self) -> None:
        """Raise DeadlineExceeded or Cancelled if the call is over. Cheap: call it at every step or tile."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise DeadlineExceeded("the deadline passed while the call was being worked on; allow more time")
        if self._cancelled:
            raise Cancelled("the caller cancelled the call")

    @contextmanager
    def stage(self, name: str, step_count: int = 1) -> Iterator[Callable[[int], None]]:
        """Time, trace and report one part of the work.

        with job.stage("upscale", len(tiles)) as step:
            for done, tile in enumerate(tiles, start=1):
                ...
                step(done)      # reports `done` of step_count, and checks
        """
        self.check()
        timing = Timing(name)
        self.timings.append(timing)
        started = time.perf_counter()
        self._report(name, 0, step_count, started)

        def step(done: int) -> None:
            self._report(name, done, step_count, started)
            self.check()

        try:
            with tracer.start_as_current_span(name, attributes={"limner.step_count": step_count}):
                yield step
        finally:
            timing.seconds = time.perf_counter() - started

    def preview(self, image: images_pb2.Image, step: int, image_index: int = 0) -> None:
        """Show the work so far, as it is after `step` steps, of one of the call's pictures; a preview of this picture
        that was not fetched yet is replaced."""
        if self.previews:
            self._publish("preview", progress_pb2.Preview(image=image, step=step, image_index=image_index))

    def _report(self, stage: str, done: int, count: int, started: float) -> None:
        progress = progress_pb2.Progress(stage=stage, step=done, step_count=count)
        if done:
            elapsed = time.perf_counter() - started
            progress.eta.CopyFrom(duration(elapsed / done * (count - done)))
        self._publish("progress", progress)
