"""The client for asyncio: runs that survive a broken connection, blobs, one-line helpers.

The synchronous client drives this one. Nothing here looks at pixels or at what a pipeline means.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from limner.client import jobs, pictures, results
from limner.client.channel import open_channel, trace_metadata
from limner.client.errors import Cancelled, RequestFailed, TimedOut, from_rpc_error, from_status, is_lost_connection
from limner.client.jobs import Job
from limner.client.pictures import ImageSource
from limner.client.results import Result
from limner.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    images_pb2,
    models_pb2,
    models_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
)

DEFAULT_ADDRESS = "127.0.0.1:7400"
DEFAULT_LINGER = 15.0  # seconds
DEFAULT_INLINE_LIMIT = 8 << 20  # bytes
PIECE_BYTES = 1 << 20
_FIRST_TRIES = 2  # on top of the channel's own, as long as no event has come
_CANCEL_SECONDS = 3.0

_P = ParamSpec("_P")
_Response = TypeVar("_Response")


def _helper(
    write: Callable[_P, Job],
) -> Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, bytes]]:
    """A method that takes the arguments of a function of `jobs`, runs what it writes and returns the picture."""

    async def run_job(self: AsyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> bytes:
        return await self.run_job(write(*args, **kwargs))

    jobs.present_as(run_job, write)
    return run_job


def _maker(
    write: Callable[_P, Job],
) -> Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, Result]]:
    """As `_helper`, for what has more to tell than one picture: the method returns the Result."""

    async def make(self: AsyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> Result:
        return await self.job_result(write(*args, **kwargs))

    jobs.present_as(make, write, "Result")
    return make


class AsyncClient:
    """A connection to a router.

        async with AsyncClient("127.0.0.1:7400", timeout=60) as client:
            repaired = await client.erase("photo.jpg", clicks=[(420, 310)])

    `timeout` is in seconds and holds for each call, a whole run included; None: no limit. Pictures of more than
    `inline_limit` bytes travel as blobs, in both directions. All calls raise RequestFailed.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout: float | None = None,
        inline_limit: int = DEFAULT_INLINE_LIMIT,
    ) -> None:
        self.address = address
        self.timeout = timeout
        self.inline_limit = inline_limit
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; what still runs on it ends with Cancelled."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

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
    ) -> AsyncRun:
        """Prepares a run; it begins with the first event that is asked for.

        After a broken connection the run is resumed within `linger` seconds. `request_id` makes the call safe to
        repeat, from another process too; by default one is drawn. The other arguments are RunRequest's.
        """
        request = router_pb2.RunRequest(
            pipeline=pipeline,
            request_id=request_id or uuid.uuid4().hex,
            previews=previews,
            intermediates=intermediates,
            detached=detached,
            linger=_duration(linger),
            inline_limit_bytes=self.inline_limit,
        )
        return AsyncRun(
            self, request, inputs or {}, linger=linger, timeout=self.timeout if timeout is None else timeout
        )

    def watch(self, run_id: str, after_sequence: int = 0, *, timeout: float | None = None) -> AsyncRun:
        """Follows a run that somebody else began, from the event after `after_sequence`."""
        run = AsyncRun(self, None, {}, linger=DEFAULT_LINGER, timeout=self.timeout if timeout is None else timeout)
        run.run_id, run.sequence = run_id, after_sequence
        return run

    async def run_job(self, job: Job) -> bytes:
        """Runs a job of `limner.client.jobs` and returns its picture, an image file."""
        return (await self.job_result(job)).data

    async def job_result(self, job: Job) -> Result:
        """Runs a job of `limner.client.jobs` and returns its result: all pictures, and what they were made from."""
        async with self.run(job.pipeline, job.inputs) as run:
            await run.wait()
            return run.results[job.result]

    erase = _helper(jobs.erase)
    segment = _helper(jobs.segment)
    upscale = _helper(jobs.upscale)
    remove_background = _helper(jobs.remove_background)
    convert = _helper(jobs.convert)
    generate = _maker(jobs.generate)
    edit = _maker(jobs.edit)
    outpaint = _maker(jobs.outpaint)

    async def models(self, task: str = "") -> list[models_pb2.Model]:
        """The models of all healthy servers, or those of one task, such as `inpaint`."""
        stub = models_pb2_grpc.ModelServiceStub(self.channel())
        return list((await self.call(stub.ListModels, models_pb2.ListModelsRequest(task=task))).models)

    async def load_model(
        self, name: str, *, tell: Callable[[models_pb2.LoadModelResponse], None] = lambda event: None
    ) -> models_pb2.Model:
        """Has every server that offers the model load it; `tell` gets the events as they come."""
        stub = models_pb2_grpc.ModelServiceStub(self.channel())
        return await self._model_after(stub.LoadModel, models_pb2.LoadModelRequest(name=name), tell)

    async def unload_model(
        self, name: str, *, tell: Callable[[models_pb2.UnloadModelResponse], None] = lambda event: None
    ) -> models_pb2.Model:
        """Has every server that offers the model unload it, once the calls that use it have ended."""
        stub = models_pb2_grpc.ModelServiceStub(self.channel())
        return await self._model_after(stub.UnloadModel, models_pb2.UnloadModelRequest(name=name), tell)

    async def _model_after(
        self, method: Callable[..., Any], request: Any, tell: Callable[[Any], None]
    ) -> models_pb2.Model:
        model = models_pb2.Model()
        call = method(request, timeout=self.timeout, metadata=trace_metadata())
        try:
            with _client_errors(self.address):
                async for event in call:
                    tell(event)
                    if event.HasField("result"):
                        model = event.result
        finally:
            call.cancel()
        return model

    async def status(self) -> router_pb2.GetStatusResponse:
        """How the router and its servers are."""
        stub = router_pb2_grpc.RouterServiceStub(self.channel())
        return await self.call(stub.GetStatus, router_pb2.GetStatusRequest())

    async def cancel(self, run_id: str) -> bool:
        """Cancels a run; False if it had ended."""
        stub = router_pb2_grpc.RouterServiceStub(self.channel())
        return (await self.call(stub.CancelRun, router_pb2.CancelRunRequest(run_id=run_id))).cancelled

    async def upload(self, source: ImageSource) -> str:
        """Keeps a picture on the router and returns its blob id; sends nothing that is there already.

        Use it as `Image(blob_id=...)` wherever a picture is taken.
        """
        if isinstance(source, images_pb2.Image):
            raise TypeError("an Image is no file; give a path, bytes or a binary file")
        data = await asyncio.to_thread(pictures.read, source)
        blob_id = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        stub = blobs_pb2_grpc.BlobServiceStub(self.channel())
        # A piece of nothing asks how much is there.
        piece = blobs_pb2.UploadBlobRequest(blob_id=blob_id, size_bytes=len(data))
        answer = await self.call(stub.UploadBlob, piece)
        while not answer.complete:
            offset = answer.received_bytes
            piece.offset_bytes, piece.data = offset, data[offset : offset + PIECE_BYTES]
            answer = await self.call(stub.UploadBlob, piece)
            if answer.received_bytes <= offset and not answer.complete:
                raise RequestFailed(grpc.StatusCode.DATA_LOSS, f"the router keeps refusing byte {offset} of {blob_id}")
        return blob_id

    async def download(self, blob_id: str) -> bytes:
        """The bytes of a blob, checked against its id; goes on where it was after a broken connection."""
        stub = blobs_pb2_grpc.BlobServiceStub(self.channel())
        data = bytearray()
        for wait in (0.1, 0.5, 2.0, None):
            request = blobs_pb2.DownloadBlobRequest(blob_id=blob_id, offset_bytes=len(data))
            try:
                with _client_errors(self.address):
                    async for piece in stub.DownloadBlob(request, timeout=self.timeout, metadata=trace_metadata()):
                        data += piece.data
                break
            except RequestFailed as failure:
                if wait is None or not is_lost_connection(failure):
                    raise
                await asyncio.sleep(wait)
        if hashlib.sha256(data).hexdigest() != blob_id:
            raise RequestFailed(grpc.StatusCode.DATA_LOSS, f"blob {blob_id} came damaged; download it again")
        return bytes(data)

    async def call(self, method: Callable[..., Awaitable[_Response]], request: Any) -> _Response:
        """Makes a unary call."""
        with _client_errors(self.address):
            return await method(request, timeout=self.timeout, metadata=trace_metadata())

    async def as_image(self, source: ImageSource) -> images_pb2.Image:
        """The message for a picture; a large one is uploaded first."""
        if isinstance(source, images_pb2.Image):
            return source
        data = await asyncio.to_thread(pictures.read, source)
        if len(data) > self.inline_limit:
            return images_pb2.Image(blob_id=await self.upload(data))
        return images_pb2.Image(encoded=data)

    def channel(self) -> grpc.aio.Channel:
        """The connection, opened on the event loop that first needs it."""
        if self._channel is None:
            self._channel = open_channel(self.address)
        return self._channel


class AsyncRun:
    """One run: an iterator over its events that reconnects by itself, losing and repeating none.

        async with client.run(pipeline, {"source": "photo.jpg"}) as run:
            async for event in run:
                print(event.step, event.WhichOneof("event"))
        run.results["erase"].data

    `results` and `seconds` (how long a step took, its waiting for the device included) fill as steps finish.
    Leaving the block before the end cancels the run on the server. A run that fails ends with its `run_failed` event
    and then raises RequestFailed.
    """

    def __init__(
        self,
        client: AsyncClient,
        request: router_pb2.RunRequest | None,
        inputs: Mapping[str, ImageSource],
        *,
        linger: float,
        timeout: float | None,
    ) -> None:
        self.run_id = ""
        self.sequence = 0
        self.results: dict[str, Result] = {}
        self.seconds: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._client = client
        self._request = request
        self._inputs = inputs
        self._linger = linger
        self._timeout = timeout
        self._metadata = trace_metadata()
        self._sent = request is None
        self._ended = False
        self._events: AsyncGenerator[router_pb2.RunEvent, None] | None = None

    async def __aenter__(self) -> AsyncRun:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._request is not None and not self._request.detached:
            await self.cancel()
        if self._events is not None:
            with suppress(RuntimeError):  # another task reads it still, and will see the end
                await self._events.aclose()

    def __aiter__(self) -> AsyncRun:
        return self

    async def __anext__(self) -> router_pb2.RunEvent:
        if self._events is None:
            self._events = self._follow()
        return await anext(self._events)

    async def wait(self) -> dict[str, bytes]:
        """Reads to the end; the results by step, as image files; of a step that makes several pictures the first, the
        others are in `results`. Raises RequestFailed if the run fails."""
        async for _ in self:
            pass
        return {step: result.data for step, result in self.results.items()}

    async def cancel(self) -> None:
        """Cancels the run on the server, unless it has ended. Never raises RequestFailed: it may be gone already."""
        if self._ended or not self._sent:
            return
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                if not self.run_id:
                    await self._learn_run_id()
                await self._client.cancel(self.run_id)
        except (RequestFailed, StopAsyncIteration, TimeoutError):
            pass

    async def _learn_run_id(self) -> None:
        """A run that was left before its first event has an id that only the router knows; joining it tells."""
        async with aclosing(self._stream(None)) as events:
            self.run_id = (await anext(events)).accepted.run_id

    async def _follow(self) -> AsyncGenerator[router_pb2.RunEvent, None]:
        """All events, across as many connections as it takes."""
        loop = asyncio.get_running_loop()
        deadline = None if self._timeout is None else loop.time() + self._timeout
        if self._request is not None:
            for name, source in self._inputs.items():
                self._request.inputs[name].CopyFrom(await self._client.as_image(source))
        tries, lost_at = 0, None
        while True:
            try:
                left = None if deadline is None else max(0.001, deadline - loop.time())
                async with aclosing(self._stream(left)) as events:
                    async for event in events:
                        tries, lost_at = 0, None
                        if event.sequence <= self.sequence:  # a joined run begins with its first event again
                            continue
                        await self._note(event)
                        self.sequence = event.sequence
                        yield event
                        if event.HasField("run_failed"):
                            raise from_status(event.run_failed.error)
                        if self._ended:
                            return
                failure = RequestFailed(grpc.StatusCode.DATA_LOSS, "the stream ended before the run did")
            except RequestFailed as error:
                if not is_lost_connection(error):
                    self._ended = not isinstance(error, TimedOut)  # the router may not have noticed yet: cancel
                    raise
                failure = error
            # A run that nobody reads goes on for `linger` seconds; a request that nobody answered is tried a little.
            lost_at = loop.time() if lost_at is None else lost_at
            tries += 1
            if loop.time() - lost_at > self._linger if self.sequence else tries > _FIRST_TRIES:
                self._ended = True  # nobody there to be told to cancel
                raise failure
            await asyncio.sleep(min(1.0, 0.1 * 2**tries))

    async def _stream(self, timeout: float | None) -> AsyncGenerator[router_pb2.RunEvent, None]:
        """The events of one connection: of the run as it begins, or of what follows the last event seen."""
        stub = router_pb2_grpc.RouterServiceStub(self._client.channel())
        call: Any
        if self._request is not None and not self.run_id:
            self._sent = True
            call = stub.Run(self._request, timeout=timeout, metadata=self._metadata)
        else:
            watch = router_pb2.WatchRunRequest(run_id=self.run_id, after_sequence=self.sequence)
            call = stub.WatchRun(watch, timeout=timeout, metadata=self._metadata)
        try:
            with _client_errors(self._client.address):
                async for response in call:
                    yield response.event
        finally:
            call.cancel()

    async def _note(self, event: router_pb2.RunEvent) -> None:
        kind = event.WhichOneof("event")
        began = self._began.setdefault(event.step, _seconds(event.time))
        if kind == "accepted":
            self.run_id = event.accepted.run_id
        elif kind == "result":
            image = event.result.image
            if image.HasField("blob_id"):
                image = images_pb2.Image(encoded=await self._client.download(image.blob_id))
            self.results[event.step] = results.add(self.results.get(event.step), event, image)
        elif kind == "finished":
            self.seconds[event.step] = _seconds(event.time) - began
            if event.step in self.results:
                self.results[event.step] = replace(self.results[event.step], finished=event.finished)
        elif kind in ("run_finished", "run_failed"):
            self._ended = True


@contextmanager
def _client_errors(address: str) -> Iterator[None]:
    """Turns what gRPC raises into RequestFailed. A call whose channel was closed raises CancelledError as if the task
    had been cancelled, which would end the caller's program without a word."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, address) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Cancelled(grpc.StatusCode.CANCELLED, "the client was closed during the call") from None


def _seconds(time: Timestamp) -> float:
    return time.seconds + time.nanos / 1e9


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
