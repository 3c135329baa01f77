"""A router and small honest model servers: real gRPC servers on localhost that say in text what they were asked.

A fake's picture is text: inpainting `photo` with the mask `hole` gives `inpaint(photo,hole)`, so a result tells which
way it went. Making several gives `generate(prompt)`, `generate(prompt)#1` and so on. `FakeServer.script` makes a method
do something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import json_format
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from limner.core.errors import LimnerError
from limner.runtime.server import Server
from limner.runtime.status import from_status, to_status, trailers
from limner.v1 import (
    blobs_pb2_grpc,
    diffusion_pb2,
    diffusion_pb2_grpc,
    images_pb2,
    inpaint_pb2,
    inpaint_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    postprocess_pb2,
    postprocess_pb2_grpc,
    progress_pb2,
    router_pb2,
    router_pb2_grpc,
    segment_pb2,
    segment_pb2_grpc,
)

Event = tuple[str, Any]
Script = Callable[["Call"], AsyncIterator[Event]]


def text_of(image: images_pb2.Image) -> str:
    return (image.raw.data or image.encoded).decode()


def image_of(text: str, output: images_pb2.OutputOptions) -> images_pb2.Image:
    """A fake picture, encoded as asked: `png:text` or raw."""
    if output.format == "raw":
        raw = images_pb2.RawImage(
            width_px=len(text), height_px=1, channel_count=1, bit_depth=8, data=text.encode(), source_format="png"
        )
        return images_pb2.Image(raw=raw)
    return images_pb2.Image(encoded=f"{output.format or 'png'}:{text}".encode())


@dataclass
class Call:
    """One call that a fake got."""

    method: str
    request: Any
    metadata: dict[str, str]
    remaining: float | None
    began: float
    ended: float = 0.0
    cancelled: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def result(self) -> Event:
        """The result that the call asks for."""
        request = self.request
        if self.method in _MAKES:
            return "result", self._made()
        pictures = [request.image] if hasattr(request, "image") else list(request.masks)
        if self.method == "inpaint":
            pictures.append(request.mask)
        image = image_of(f"{self.method}({','.join(map(text_of, pictures))})", request.output)
        if self.method == "segment":
            return "result", segment_pb2.SegmentResult(mask=image, score=0.5)
        if self.method == "edit_mask":
            return "result", postprocess_pb2.EditMaskResult(mask=image)
        kinds = {
            "inpaint": inpaint_pb2.InpaintResult,
            "remove_background": segment_pb2.RemoveBackgroundResult,
            "upscale": postprocess_pb2.UpscaleResult,
            "convert": postprocess_pb2.ConvertResult,
        }
        return "result", kinds[self.method](image=image)

    def _made(self) -> Any:
        """As many pictures as the call asks for."""
        request = self.request
        fields = [field for field in ("image", "mask") if field in request.DESCRIPTOR.fields_by_name]
        taken = [text_of(getattr(request, field)) for field in fields if request.HasField(field)]
        options = request.options if self.method == "generate" else request.options.generate
        text = f"{self.method}({','.join([*taken, *filter(None, [request.prompt])])})"
        first, *more = [image_of(f"{text}#{i}" if i else text, request.output) for i in range(options.image_count or 1)]
        return _MAKES[self.method](image=first, more_images=more)


_MAKES = {
    "generate": diffusion_pb2.GenerateResult,
    "edit": diffusion_pb2.EditResult,
    "outpaint": diffusion_pb2.OutpaintResult,
}


def finished() -> Event:
    return "finished", progress_pb2.Finished(model="fake", seed=7)


async def at_once(call: Call) -> AsyncIterator[Event]:
    yield "queued", progress_pb2.Queued()
    yield "started", progress_pb2.Started()
    yield "progress", progress_pb2.Progress(stage=call.method, step=1, step_count=1)
    yield call.result()
    yield finished()


def after(seconds: float) -> Script:
    """Work for some time."""

    async def script(call: Call) -> AsyncIterator[Event]:
        yield "started", progress_pb2.Started()
        await asyncio.sleep(seconds)
        yield call.result()
        yield finished()

    return script


def failing(error: LimnerError) -> Script:
    async def script(call: Call) -> AsyncIterator[Event]:
        raise error.with_traceback(None)  # else each raising adds the frames of its call
        yield  # it is a generator

    return script


def one_after_another(*scripts: Script) -> Script:
    """The first call does the first, and so on; the last is repeated."""
    left = list(scripts)

    def script(call: Call) -> AsyncIterator[Event]:
        return (left.pop(0) if len(left) > 1 else left[0])(call)

    return script


class FakeServer:
    """Speaks every model service, and health."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.scripts: dict[str, Script] = {}
        self.models: list[models_pb2.Model] = []
        self.health = health.aio.HealthServicer()
        self.port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def script(self, method: str, script: Script) -> None:
        self.scripts[method] = script

    def called(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.http2.min_ping_interval_without_data_ms", 50)]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        inpaint_pb2_grpc.add_InpaintServiceServicer_to_server(self, self._server)
        segment_pb2_grpc.add_SegmentServiceServicer_to_server(self, self._server)
        postprocess_pb2_grpc.add_PostprocessServiceServicer_to_server(self, self._server)
        diffusion_pb2_grpc.add_DiffusionServiceServicer_to_server(self, self._server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()
        await self.say(True)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def say(self, serving: bool) -> None:
        kinds = health_pb2.HealthCheckResponse
        await self.health.set("", kinds.SERVING if serving else kinds.NOT_SERVING)

    async def Inpaint(self, request: Any, context: Any) -> None:
        await self._play("inpaint", request, context, inpaint_pb2.InpaintResponse)

    async def Segment(self, request: Any, context: Any) -> None:
        await self._play("segment", request, context, segment_pb2.SegmentResponse)

    async def Embed(self, request: Any, context: Any) -> None:
        raise NotImplementedError

    async def RemoveBackground(self, request: Any, context: Any) -> None:
        await self._play("remove_background", request, context, segment_pb2.RemoveBackgroundResponse)

    async def Upscale(self, request: Any, context: Any) -> None:
        await self._play("upscale", request, context, postprocess_pb2.UpscaleResponse)

    async def EditMask(self, request: Any, context: Any) -> None:
        await self._play("edit_mask", request, context, postprocess_pb2.EditMaskResponse)

    async def Convert(self, request: Any, context: Any) -> None:
        await self._play("convert", request, context, postprocess_pb2.ConvertResponse)

    async def Generate(self, request: Any, context: Any) -> None:
        await self._play("generate", request, context, diffusion_pb2.GenerateResponse)

    async def Edit(self, request: Any, context: Any) -> None:
        await self._play("edit", request, context, diffusion_pb2.EditResponse)

    async def Outpaint(self, request: Any, context: Any) -> None:
        await self._play("outpaint", request, context, diffusion_pb2.OutpaintResponse)

    async def ListModels(self, request: Any, context: Any) -> models_pb2.ListModelsResponse:
        return models_pb2.ListModelsResponse(
            models=[model for model in self.models if not request.task or model.task == request.task]
        )

    async def GetModel(self, request: Any, context: Any) -> None:
        raise NotImplementedError

    async def LoadModel(self, request: Any, context: Any) -> AsyncIterator[models_pb2.LoadModelResponse]:
        self.calls.append(Call("load", request, {}, None, time.monotonic()))
        yield models_pb2.LoadModelResponse(started=progress_pb2.Started())
        yield models_pb2.LoadModelResponse(result=models_pb2.Model(name=request.name))
        yield models_pb2.LoadModelResponse(finished=progress_pb2.Finished())

    async def UnloadModel(self, request: Any, context: Any) -> AsyncIterator[models_pb2.UnloadModelResponse]:
        yield models_pb2.UnloadModelResponse(result=models_pb2.Model(name=request.name))

    async def _play(self, method: str, request: Any, context: Any, response_type: Any) -> None:
        metadata = dict(context.invocation_metadata())
        call = Call(method, request, metadata, context.time_remaining(), time.monotonic())
        self.calls.append(call)
        try:
            async for kind, message in self.scripts.get(method, at_once)(call):
                await context.write(response_type(**{kind: message}))
        except LimnerError as error:
            status = to_status(error)
            code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
            await context.abort(code, status.message, trailers(status))
        except asyncio.CancelledError:
            call.cancelled = True
            raise
        finally:
            call.ended = time.monotonic()
            call.over.set()


class Wire:
    """A TCP connection that can be cut or frozen: what a killed or a stopped machine looks like from outside."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._target = port
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def freeze(self) -> None:
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    async def cut(self) -> None:
        """Close the port and abort every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, back]
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
        sink.close()


class Router:
    """A running router and a channel to it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.address = f"127.0.0.1:{server.port}"
        self.channel = grpc.aio.insecure_channel(
            self.address,
            options=[
                ("grpc.max_receive_message_length", 64 << 20),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self.stub = router_pb2_grpc.RouterServiceStub(self.channel)
        self.blobs = blobs_pb2_grpc.BlobServiceStub(self.channel)
        self.models = models_pb2_grpc.ModelServiceStub(self.channel)

    async def run(self, request: router_pb2.RunRequest, **options: Any) -> list[router_pb2.RunEvent]:
        """All events of a run that succeeds."""
        return [response.event async for response in self.stub.Run(request, **options)]

    async def fail(
        self, request: router_pb2.RunRequest, **options: Any
    ) -> tuple[list[router_pb2.RunEvent], LimnerError]:
        """All events of a run that fails, and its error."""
        events = []
        try:
            async for response in self.stub.Run(request, **options):
                events.append(response.event)
        except grpc.aio.AioRpcError as error:
            return events, from_status(error)
        raise AssertionError("the run succeeded")

    async def status(self) -> router_pb2.GetStatusResponse:
        return await self.stub.GetStatus(router_pb2.GetStatusRequest())

    async def until_healthy(self, *addresses: str) -> None:
        """Wait until the router knows these servers to be healthy."""

        async def look() -> bool:
            servers = (await self.status()).servers
            return set(addresses) <= {server.address for server in servers if server.healthy}

        await until(look)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
    give_up = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < give_up, "it did not come about"
        await asyncio.sleep(0.01)


def request(*steps: dict[str, Any], outputs: tuple[str, ...] = (), inputs: Any = None, **fields: Any) -> Any:
    """A RunRequest; steps as in the protos' JSON, inputs as texts."""
    made = router_pb2.RunRequest(**fields)
    json_format.ParseDict({"steps": list(steps), "outputs": list(outputs)}, made.pipeline)
    for name, text in ({"source": "photo", "hole": "hole"} if inputs is None else inputs).items():
        made.inputs[name].encoded = text.encode()
    return made


def erase(name: str = "fill", **options: Any) -> dict[str, Any]:
    """The plainest step: inpaint `source` by `hole`."""
    return {"name": name, "inpaint": {"mask": "hole", "options": options}}


def kinds(events: list[router_pb2.RunEvent], step: str | None = None) -> list[str]:
    return [event.WhichOneof("event") for event in events if step is None or event.step == step]


def results(events: list[router_pb2.RunEvent]) -> dict[str, str]:
    return {event.step: text_of(event.result.image) for event in events if event.WhichOneof("event") == "result"}
