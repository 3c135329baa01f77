"""One step's call to a model server: which server, how often it is tried, and what its errors mean for the caller.

A call goes to another server only if nothing was produced yet: neither a result nor a preview. Knows the pool and the
servers' messages, not runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from limner.core.errors import (
    Cancelled,
    DeadlineExceeded,
    LimnerError,
    Overloaded,
    ServerUnavailable,
    Unavailable,
)
from limner.router.pool import Backend, Pool
from limner.router.steps import Operation
from limner.runtime import telemetry
from limner.runtime.status import from_status
from limner.v1 import progress_pb2, router_pb2

MAX_ATTEMPTS = 3
_SHORTEST_PAUSE = 0.02
_PROGRESS_SECONDS = 1.0  # progress of less than a hundredth of a stage is told this often

# How a step's events are told: their name in RunEvent, and the event.
Tell = Callable[[str, Message], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a call that succeeded came to."""

    result: Any  # the typed result message, InpaintResult and so on
    finished: progress_pb2.Finished


@dataclass(frozen=True)
class Caller:
    """Makes the calls of one run."""

    pool: Pool
    run_id: str
    previews: bool
    remaining: Callable[[], float | None]  # seconds until the run's deadline
    margin: float  # seconds kept back for passing the answer on
    overload_wait: float  # seconds that a call waits for a place where all servers are full

    async def call(self, operation: Operation, request: Any, *, step: str, tell: Tell) -> Answer:
        """Do one step. `tell` gets Queued, Started, Progress, Preview and StepRetried as they come.

        Raises what the server raised, ServerUnavailable, or DeadlineExceeded.
        """
        kind = operation.server
        give_up = asyncio.get_running_loop().time() + self.overload_wait
        tried: set[Backend] = set()  # since the last pause
        attempt, lost = 1, ""
        with _Place(self.pool.line(kind)) as place:
            while True:
                if place.others_wait:
                    await self._wait_behind_others(place, kind, give_up)
                backend = await self._choose(kind, tried, lost)
                tried.add(backend)
                one = _Attempt(self, operation, backend, step, tell, taken=place.leave)
                try:
                    return await one.run(request)
                except Overloaded as error:
                    if self.pool.others(kind, than=tried):
                        continue
                    tried.clear()
                    if not place.others_wait:
                        await place.take()
                        await self._pause(error, give_up)
                except (Unavailable, Cancelled) as error:
                    backend.doubt()
                    lost = f"the {kind} server {backend.address} went away: {error.message}"
                    _log.warning("step %s, try %d: %s", step, attempt, lost)
                    if one.produced or attempt == MAX_ATTEMPTS:
                        raise _went_away(operation, backend, step, attempt, one.produced, error) from error
                    attempt += 1
                    telemetry.step_retries.add(1, {"kind": kind})
                    tell("retried", router_pb2.StepRetried(attempt=attempt, reason=lost))

    async def _choose(self, kind: str, tried: set[Backend], lost: str) -> Backend:
        try:
            return await self.pool.choose(kind, tried=tried, patience=self._patience())
        except ServerUnavailable as error:
            message = f"{error.message}; {lost}" if lost else error.message
            raise ServerUnavailable(message, metadata=error.metadata) from None

    def _patience(self) -> float | None:
        """Return how long to wait for a server so that there is still time to tell that there is none."""
        remaining = self.remaining()
        return None if remaining is None else max(remaining - self.margin, 0)

    async def _wait_behind_others(self, place: _Place, kind: str, give_up: float) -> None:
        wait = give_up - asyncio.get_running_loop().time()
        patience = self._patience()
        try:
            async with asyncio.timeout(wait if patience is None else min(wait, patience)):
                await place.take()
        except TimeoutError:
            raise Overloaded(
                f"all {kind} servers are busy, and other calls have waited longer; try again in a moment",
                retry_after=1.0,
            ) from None

    async def _pause(self, error: Overloaded, give_up: float) -> None:
        """Wait as long as the server that is full asked to, or raise its error if that is too long."""
        if error.retry_after is None:
            raise error
        pause = max(error.retry_after, _SHORTEST_PAUSE)
        remaining = self.remaining()
        if asyncio.get_running_loop().time() + pause > give_up or (remaining is not None and pause >= remaining):
            raise error
        await asyncio.sleep(pause)


class _Place:
    """A call's place in the line of those that every server of a kind was too busy to take.

    Only the first in the line asks the servers again, and who comes while there is a line goes to its end: otherwise
    newcomers would take each place that becomes free, and who waits would wait for ever.
    """

    def __init__(self, line: asyncio.Lock) -> None:
        self._line = line
        self._held = False

    @property
    def others_wait(self) -> bool:
        """Tell whether there is a line and this call is not its first."""
        return self._line.locked() and not self._held

    async def take(self) -> None:
        """Become the first in the line."""
        if not self._held:
            await self._line.acquire()
            self._held = True

    def leave(self) -> None:
        """Leave the line, if the call is in it."""
        if self._held:
            self._held = False
            self._line.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class _Attempt:
    """One call to one server; `taken()` is called when the server has taken it."""

    def __init__(
        self,
        caller: Caller,
        operation: Operation,
        backend: Backend,
        step: str,
        tell: Tell,
        *,
        taken: Callable[[], None],
    ) -> None:
        self.produced = False  # a result or a preview has come: the call can't be repeated unseen
        self._caller = caller
        self._operation = operation
        self._backend = backend
        self._step = step
        self._tell = tell
        self._taken = taken
        self._progress = _ProgressFilter()
        self._phase = "before the server took the call"

    async def run(self, request: Any) -> Answer:
        """Make the call. Raises Unavailable or Cancelled if the server went away, or the server's own error."""
        caller = self._caller
        if "previews" in request.DESCRIPTOR.fields_by_name:
            request.previews = caller.previews
        metadata, timeout = telemetry.outgoing(
            run_id=caller.run_id,
            step=self._step,
            remaining=caller.remaining(),
            margin=caller.margin,
        )
        with caller.pool.using(self._backend):
            call = self._operation.method(self._backend.channel)(request, timeout=timeout, metadata=metadata)
            try:
                return await self._read(call)
            except grpc.aio.AioRpcError as error:
                raise self._told(from_status(error)) from None
            finally:
                call.cancel()  # a call that nobody reads any more goes on at the server otherwise

    def _told(self, error: LimnerError) -> LimnerError:
        """Say where the deadline passed: whose clock runs out first is chance, and gRPC's own words say nothing."""
        if not isinstance(error, DeadlineExceeded):
            return error
        return DeadlineExceeded(
            f"the deadline passed during step {self._step!r}, {self._phase} (the {self._operation.server} server "
            f"{self._backend.address}); allow more time",
            metadata={"kind": self._operation.server, "address": self._backend.address},
        )

    async def _read(self, call: Any) -> Answer:
        result = finished = None
        async for response in call:
            self._taken()
            kind = response.WhichOneof("event")
            if kind == "result":
                self.produced = True
                result = response.result
            elif kind == "finished":
                finished = response.finished
            elif kind == "preview":
                if self._caller.previews:
                    self.produced = True
                    self._tell(kind, response.preview)
            elif kind == "progress":
                if self._progress.is_worth_telling(response.progress):
                    self._tell(kind, response.progress)
            elif kind is not None:
                self._phase = _PHASES.get(kind, self._phase)
                self._tell(kind, getattr(response, kind))
        if result is None or finished is None:
            raise ServerUnavailable("its stream ended without a result")
        return Answer(result, finished)


_PHASES = {"queued": "while it waited for the device", "started": "while the device was at work on it"}


class _ProgressFilter:
    """Passes a stage's beginning and end, every hundredth of it, and else what comes after a second: the router keeps
    all events of a run, and a stage may have any number of steps."""

    def __init__(self) -> None:
        self._last = progress_pb2.Progress()
        self._told_at = 0.0

    def is_worth_telling(self, progress: progress_pb2.Progress) -> bool:
        """Tell whether an event says enough that is new."""
        now = time.monotonic()
        if (
            progress.stage == self._last.stage
            and progress.step < progress.step_count
            and 0 <= (progress.step - self._last.step) * 100 < progress.step_count
            and now - self._told_at < _PROGRESS_SECONDS
        ):
            return False
        self._last, self._told_at = progress, now
        return True


def _went_away(
    operation: Operation, backend: Backend, step: str, attempts: int, produced: bool, error: LimnerError
) -> ServerUnavailable:
    why = "it had already produced something" if produced else f"{attempts} tries are all there are"
    return ServerUnavailable(
        f"the {operation.server} server {backend.address} went away during step {step!r} ({error.message}), and as "
        f"{why} the step was not tried again; look at that server's log, and send the request anew",
        metadata={"kind": operation.server, "address": backend.address, "step": step},
    )
