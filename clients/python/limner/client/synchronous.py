"""The client for ordinary code. It drives the asynchronous one on a background event loop, one a process: gRPC's
asyncio polls badly from several loops, and one logic is enough.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from limner.client import jobs
from limner.client.asynchronous import (
    DEFAULT_ADDRESS,
    DEFAULT_INLINE_LIMIT,
    DEFAULT_LINGER,
    AsyncClient,
    AsyncRun,
)
from limner.client.jobs import Job
from limner.client.pictures import ImageSource
from limner.client.results import Result
from limner.v1 import models_pb2, router_pb2

_CLEAN_UP_SECONDS = 5.0

_T = TypeVar("_T")
_P = ParamSpec("_P")


def _helper(write: Callable[_P, Job]) -> Callable[Concatenate[Client, _P], bytes]:
    """As in `asynchronous`."""

    def run_job(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> bytes:
        return self.run_job(write(*args, **kwargs))

    jobs.present_as(run_job, write)
    return run_job


def _maker(write: Callable[_P, Job]) -> Callable[Concatenate[Client, _P], Result]:
    """As in `asynchronous`."""

    def make(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> Result:
        return self.job_result(write(*args, **kwargs))

    jobs.present_as(make, write, "Result")
    return make


class Client:
    """A connection to a router; any thread may use it. Arguments, methods and errors are AsyncClient's.

    with Client("127.0.0.1:7400", timeout=60) as client:
        repaired = client.erase("photo.jpg", clicks=[(420, 310)])
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float | None = None,
        inline_limit: int = DEFAULT_INLINE_LIMIT,
    ) -> None:
        self._client = AsyncClient(address, timeout=timeout, inline_limit=inline_limit)

    @property
    def address(self) -> str:
        """Where the router is."""
        return self._client.address

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        _call(self._client.close())

    def run(
        self,
        pipeline: router_pb2.Pipeline,
        inputs: Mapping[str, ImageSource] | None = None,
        *,
        previews: bool = False,
        intermediates: bool = False,
        detached: bool = False,
        linger: float = DEFAULT_LINGER,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Run:
        """Prepares a run; it begins with the first event that is asked for. Arguments as AsyncClient.run's."""
        return Run(
            self._client.run(
                pipeline,
                inputs,
                previews=previews,
                intermediates=intermediates,
                detached=detached,
                linger=linger,
                request_id=request_id,
                timeout=timeout,
            )
        )

    def watch(self, run_id: str, after_sequence: int = 0, *, timeout: float | None = None) -> Run:
        """Follows a run that somebody else began, from the event after `after_sequence`."""
        return Run(self._client.watch(run_id, after_sequence, timeout=timeout))

    def run_job(self, job: Job) -> bytes:
        """Runs a job of `limner.client.jobs` and returns its picture, an image file."""
        return _call(self._client.run_job(job))

    def job_result(self, job: Job) -> Result:
        """Runs a job of `limner.client.jobs` and returns its result: all pictures, and what they were made from."""
        return _call(self._client.job_result(job))

    erase = _helper(jobs.erase)
    segment = _helper(jobs.segment)
    upscale = _helper(jobs.upscale)
    remove_background = _helper(jobs.remove_background)
    convert = _helper(jobs.convert)
    generate = _maker(jobs.generate)
    edit = _maker(jobs.edit)
    outpaint = _maker(jobs.outpaint)

    def models(self, task: str = "") -> list[models_pb2.Model]:
        """The models of all healthy servers, or those of one task, such as `inpaint`."""
        return _call(self._client.models(task))

    def load_model(self, name: str) -> models_pb2.Model:
        """Has every server that offers the model load it."""
        return _call(self._client.load_model(name))

    def unload_model(self, name: str) -> models_pb2.Model:
        """Has every server that offers the model unload it, once the calls that use it have ended."""
        return _call(self._client.unload_model(name))

    def status(self) -> router_pb2.GetStatusResponse:
        """How the router and its servers are."""
        return _call(self._client.status())

    def cancel(self, run_id: str) -> bool:
        """Cancels a run; False if it had ended."""
        return _call(self._client.cancel(run_id))

    def upload(self, source: ImageSource) -> str:
        """Keeps a picture on the router and returns its blob id; sends nothing that is there already."""
        return _call(self._client.upload(source))

    def download(self, blob_id: str) -> bytes:
        """The bytes of a blob."""
        return _call(self._client.download(blob_id))


class Run:
    """One run: an iterator over its events that reconnects by itself.

        with client.run(pipeline, {"source": "photo.jpg"}) as run:
            for event in run:
                print(event.step, event.WhichOneof("event"))
        run.results["erase"].data

    Leaving the block before the end cancels the run on the server.
    """

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    @property
    def run_id(self) -> str:
        """The run's id; empty before its first event."""
        return self._run.run_id

    @property
    def sequence(self) -> int:
        """The number of the last event that was seen."""
        return self._run.sequence

    @property
    def results(self) -> dict[str, Result]:
        """The results so far, by step."""
        return self._run.results

    @property
    def seconds(self) -> dict[str, float]:
        """How long each finished step took, its waiting for the device included."""
        return self._run.seconds

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _call(self._run.__aexit__(kind, error, trace))

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> router_pb2.RunEvent:
        event = _call(self._next())
        if event is None:
            raise StopIteration
        return event

    async def _next(self) -> router_pb2.RunEvent | None:
        return await anext(self._run, None)

    def wait(self) -> dict[str, bytes]:
        """Reads to the end; the results by step, as image files; of a step that makes several pictures the first, the
        others are in `results`. Raises RequestFailed if the run fails."""
        return _call(self._run.wait())

    def cancel(self) -> None:
        """Cancels the run on the server, unless it has ended."""
        _call(self._run.cancel())


class _Loop:
    """The event loop of all synchronous clients of this process, on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="limner-client", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def _stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(1.0)


_lock = threading.Lock()
_background: _Loop | None = None


def _call(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Runs a coroutine on the background loop and waits for it. An interrupt cancels it and waits for its clean-up,
    so that a run is cancelled on the server before the program goes."""
    global _background
    with _lock:
        if _background is None:
            _background = _Loop()
    ended = threading.Event()

    async def tell_the_end() -> _T:
        try:
            return await coroutine
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(tell_the_end(), _background.loop)
    try:
        return future.result()
    except BaseException:
        if future.cancel():
            ended.wait(_CLEAN_UP_SECONDS)
        raise
