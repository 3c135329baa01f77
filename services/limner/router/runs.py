"""Runs: which there are, who reads them, when they end and how long they are remembered.

A run belongs to nobody: it is started, watched, joined and cancelled by its id, and goes on or ends by whether it is
read. What its steps do is `execution`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import random
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager

from google.rpc import status_pb2

from limner.core.errors import (
    BadArgument,
    Cancelled,
    LimnerError,
    Overloaded,
    RequestIdConflict,
    RunNotFound,
    Stopping,
)
from limner.router.blobs import BlobStore
from limner.router.calls import Caller
from limner.router.config import RouterConfig
from limner.router.execution import execute
from limner.router.journal import Journal
from limner.router.pipeline import Plan, plan
from limner.router.pool import Pool
from limner.runtime import logs, telemetry
from limner.runtime.messages import duration
from limner.runtime.status import as_limner_error, from_status_proto, to_status
from limner.runtime.telemetry import tracer
from limner.v1 import router_pb2

INLINE_LIMIT = 3 << 20
MAX_LINGER = 3600.0
MAX_REQUEST_ID = 128
_UNREAD = "nobody reads the run any more"
_STOPPING = "the router is stopping and could not wait for the run any longer; send the request anew"
_RETRY_AFTER = (0.1, 30.0)  # the least and the most that a refused caller is told to wait, in seconds

_log = logging.getLogger(__name__)


class Run:
    """One run. It holds its events and not its pictures."""

    def __init__(self, *, detached: bool, linger: float, remaining: float | None) -> None:
        """`remaining` is the seconds to the first reader's deadline: it holds for runs that end with their readers."""
        self.id = secrets.token_hex(16)
        self.journal = Journal()
        # Why it failed. Not the exception: its traceback holds on to every frame, and those to the pictures.
        self.failure: status_pb2.Status | None = None
        self.began = time.monotonic()
        self.ended_at = 0.0
        self.request_key = ""
        self._outlives_readers = detached or linger > 0
        self._detached = detached
        self._linger = linger
        self._readers = 0
        self._deadline = None if remaining is None or self._outlives_readers else time.monotonic() + remaining
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cancelled_by: LimnerError | None = None

    @property
    def joinable(self) -> bool:
        """Tell whether the run has done, or will do, what it was asked to."""
        return self.failure is None and (self.journal.ended or self._cancelled_by is None)

    def remaining(self) -> float | None:
        """Return the seconds to the run's deadline."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def start(self, task: asyncio.Task[None]) -> None:
        """Take the task that does the work."""
        self._task = task

    async def cancel(self, error: LimnerError) -> bool:
        """End the run with `error` and wait until its calls are cancelled. Returns False if it ended by itself."""
        task = self._task
        if task is None:
            return False
        self._cancel_now(error)
        await asyncio.wait([task])
        return task.cancelled()

    def join(self, remaining: float | None) -> None:
        """Count a reader; the run's deadline is the latest of its readers'."""
        self._readers += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._deadline is not None:
            self._deadline = None if remaining is None else max(self._deadline, time.monotonic() + remaining)

    def leave(self) -> None:
        """Count a reader less; the last one's leaving ends the run, at once or after it has lingered."""
        self._readers -= 1
        if self._readers or self._detached or self.journal.ended:
            return
        if self._linger:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._linger, self._cancel_now, Cancelled(_UNREAD))
        else:
            self._cancel_now(Cancelled(_UNREAD))

    def end(self, error: LimnerError | None) -> None:
        """Write the last event."""
        self.ended_at = time.monotonic()
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
        if error is None:
            self.journal.append(
                "", "run_finished", router_pb2.RunFinished(duration=duration(self.ended_at - self.began))
            )
        else:
            self.failure = to_status(error)
            self.journal.append("", "run_failed", router_pb2.RunFailed(error=self.failure))
        self.journal.end()

    def cancellation(self) -> LimnerError:
        """Return why the run was cancelled."""
        return self._cancelled_by or Stopping(_STOPPING)

    def _cancel_now(self, error: LimnerError) -> None:
        if self._task is not None and self._cancelled_by is None:
            self._cancelled_by = error
            self._task.cancel()


class Runs:
    """All runs of a router."""

    def __init__(
        self,
        config: RouterConfig,
        pool: Pool,
        blobs: BlobStore,
        hold: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """`hold()` is entered for as long as a run works: a stopping server waits for it."""
        self._config = config
        self._pool = pool
        self._blobs = blobs
        self._hold = hold
        self._runs: dict[str, Run] = {}  # those that ended, in the order in which they did, and those that work
        self._active: set[Run] = set()
        self._requests: dict[str, tuple[bytes, Run]] = {}  # request_id -> digest of the content, run
        self._mean_seconds = 1.0

    @property
    def active_count(self) -> int:
        """Return how many runs have not ended."""
        return len(self._active)

    async def start(self, request: router_pb2.RunRequest, remaining: float | None) -> Run:
        """Check a request and start its run, or join the one with its request_id. The caller is its reader: it must
        `leave` it.

        Raises BadPipeline, BadArgument, BlobNotFound, RequestIdConflict, Overloaded.
        """
        linger = _checked_linger(request)
        if len(request.request_id) > MAX_REQUEST_ID:
            raise BadArgument(
                f"request_id has {len(request.request_id)} characters; give at most {MAX_REQUEST_ID}",
                field="request_id",
            )
        content = await asyncio.to_thread(_digest, request) if request.request_id else b""
        # No await from here on: who comes first starts the run, and all others join it.
        earlier = self._earlier(request.request_id, content)
        if earlier is not None:
            logs.run_id.set(earlier.id)
            earlier.join(remaining)
            return earlier
        checked = plan(request, self._blobs.has)
        if len(self._active) >= self._config.max_runs:
            raise self._overloaded()
        run = Run(detached=request.detached, linger=linger, remaining=remaining)
        used = [request.inputs[name].blob_id for name in checked.inputs if request.inputs[name].blob_id]
        logs.run_id.set(run.id)  # of the call and all that comes of it
        resources = contextlib.ExitStack()
        resources.enter_context(self._blobs.pinned(used))
        resources.enter_context(self._hold())
        self._runs[run.id] = run
        self._active.add(run)
        if request.request_id:
            self._requests[request.request_id] = (content, run)
            run.request_key = request.request_id
        run.journal.append("", "accepted", router_pb2.RunAccepted(run_id=run.id, steps=checked.names))
        task = asyncio.create_task(self._work(run, checked, request), name=f"run {run.id}")
        run.start(task)
        run.join(remaining)
        # A task that is cancelled before it began runs none of its code, so the end is told from outside.
        task.add_done_callback(functools.partial(self._ended, run, resources))
        return run

    def find(self, run_id: str) -> Run:
        """Return a run. Raises RunNotFound."""
        run = self._runs.get(run_id)
        if run is None:
            raise RunNotFound(
                f"no run {run_id[:64]!r} here: there was none, or it ended a while ago and is forgotten",
                metadata={"run_id": run_id[:64]},
            )
        return run

    async def read(self, run: Run, after: int = 0) -> AsyncIterator[router_pb2.RunResponse]:
        """Yield a run's events after number `after` to its end, and raise its error if it failed."""
        if after > len(run.journal):
            raise BadArgument(
                f"after_sequence is {after}, but the run has {len(run.journal)} events so far; give the number of the "
                "last event seen",
                field="after_sequence",
            )
        async for response in run.journal.follow(after):
            yield response
        if run.failure is not None:
            raise from_status_proto(run.failure)

    def forget_old(self) -> None:
        """Forget runs that ended long ago, or are too many or too much. To be called now and then."""
        ended = [run for run in self._runs.values() if run.journal.ended]
        count, size = len(ended), sum(run.journal.bytes_used for run in ended)
        for run in ended:
            if (
                time.monotonic() - run.ended_at < self._config.run_retention
                and count <= self._config.run_retention_count
                and size <= self._config.run_retention_bytes
            ):
                break
            count, size = count - 1, size - run.journal.bytes_used
            del self._runs[run.id]
            if self._requests.get(run.request_key, (b"", None))[1] is run:
                del self._requests[run.request_key]

    async def close(self) -> None:
        """Cancel all runs."""
        await asyncio.gather(*(run.cancel(Stopping(_STOPPING)) for run in list(self._active)))

    def _earlier(self, request_id: str, content: bytes) -> Run | None:
        """Return the run to join. One that failed or was cancelled is no answer: the work is done anew."""
        if request_id not in self._requests:
            return None
        digest, run = self._requests[request_id]
        if not run.joinable:
            return None
        if digest != content:
            raise RequestIdConflict(
                f"request_id {request_id!r} was used for another request; give each request its own",
                metadata={"request_id": request_id},
            )
        return run

    def _overloaded(self) -> Overloaded:
        least, most = _RETRY_AFTER
        wait = min(max(self._mean_seconds / self._config.max_runs, least), most)
        return Overloaded(
            f"{len(self._active)} runs are under way, which is all this router takes; try again in a moment",
            retry_after=wait * (1 + random.random()),
        )

    async def _work(self, run: Run, checked: Plan, request: router_pb2.RunRequest) -> None:
        caller = Caller(
            pool=self._pool,
            run_id=run.id,
            previews=request.previews,
            remaining=run.remaining,
            margin=self._config.deadline_margin,
            overload_wait=self._config.overload_wait,
        )
        inline_limit = request.inline_limit_bytes if request.HasField("inline_limit_bytes") else INLINE_LIMIT
        with tracer.start_as_current_span("run", attributes={"limner.run_id": run.id}):
            await execute(
                checked,
                request.inputs,
                caller=caller,
                journal=run.journal,
                blobs=self._blobs,
                inline_limit=inline_limit,
            )

    def _ended(self, run: Run, resources: contextlib.ExitStack, task: asyncio.Task[None]) -> None:
        error: LimnerError | None = None
        try:
            task.result()
        except asyncio.CancelledError as raised:
            error = run.cancellation()
            _let_go(raised)
        except Exception as raised:
            error = as_limner_error(raised)
            _let_go(raised)
        run.end(error)
        self._active.discard(run)
        self._runs[run.id] = self._runs.pop(run.id)  # to the end: the order is that of ending
        seconds = run.ended_at - run.began
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        telemetry.run_duration.record(seconds, {"outcome": "OK" if error is None else error.reason})
        _log.info("run %s after %.2f s", "finished" if error is None else f"ended: {error.message}", seconds)
        self.forget_old()
        resources.close()


def _let_go(error: BaseException) -> None:
    """Empty the frames that an error went through. They and the error hold each other, and the pictures in them are
    memory that Python's collector doesn't see and so doesn't hurry to free."""
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and each.__traceback__ is not None:
            traceback.clear_frames(each.__traceback__)
            each.__traceback__ = None
            left += [each.__cause__, each.__context__]


def _checked_linger(request: router_pb2.RunRequest) -> float:
    linger = request.linger.seconds + request.linger.nanos / 1e9
    if not 0 <= linger <= MAX_LINGER:
        raise BadArgument(f"linger is {linger:g} s; give 0 to {MAX_LINGER:g}", field="linger")
    return linger


def _digest(request: router_pb2.RunRequest) -> bytes:
    """Return the sha256 of a request's whole content."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
