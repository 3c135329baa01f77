"""A small honest model server: it really decodes, works in steps on the device's thread, and encodes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
import pytest

from limner.core.placement import Placement
from limner.runtime.call import Work, stream
from limner.runtime.config import ServerConfig
from limner.runtime.device import Device
from limner.runtime.job import Job
from limner.runtime.server import Server, start
from limner.v1.images_pb2 import Image
from limner.v1.inpaint_pb2 import InpaintRequest, InpaintResponse, InpaintResult
from limner.v1.inpaint_pb2_grpc import (
    InpaintServiceServicer,
    InpaintServiceStub,
    add_InpaintServiceServicer_to_server,
)

SERVICE = "limner.v1.InpaintService"


@dataclass
class Model:
    """Takes `steps` steps of `step_s` seconds each, and gives the request's image back reversed."""

    steps: int = 3
    step_s: float = 0.002
    before_step: Callable[[Job, int], None] = lambda job, step: None
    decode: Callable[[InpaintRequest], bytes] = lambda request: request.image.encoded
    runs: list[bytes] = field(default_factory=list)  # what was run, in order
    free_at: float = 0.0  # when the device's thread was last let go
    running: threading.Event = field(default_factory=threading.Event)

    def work(self, request: InpaintRequest) -> Work[bytes, bytes, InpaintResult]:
        return Work(
            decode=lambda job: self.decode(request),
            run=self._run,
            encode=lambda job, output: InpaintResult(image=Image(encoded=output)),
            placement=lambda decoded: Placement("cpu", "native", "numpy", "a test"),
            model="reverse",
            digest="abc",
        )

    def _run(self, job: Job, data: bytes) -> bytes:
        self.runs.append(data)
        self.running.set()
        try:
            with job.stage("reverse", self.steps) as step:
                for done in range(1, self.steps + 1):
                    self.before_step(job, done)
                    time.sleep(self.step_s)
                    job.preview(Image(encoded=bytes([done % 256])), done)
                    step(done)
            return data[::-1]
        finally:
            self.running.clear()
            self.free_at = time.monotonic()


class Servicer(InpaintServiceServicer):
    """As the real ones are."""

    def __init__(self, device: Device, model: Model) -> None:
        self._device = device
        self._model = model

    async def Inpaint(
        self, request: InpaintRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[InpaintResponse]:
        seed = request.options.seed if request.options.HasField("seed") else None
        work = self._model.work(request)
        async for response in stream(
            context, self._device, InpaintResponse, work, seed=seed, previews=request.previews
        ):
            yield response


class House:
    """A running server with its device, model and a client's channel."""

    def __init__(self, server: Server, device: Device, model: Model, channel: grpc.aio.Channel) -> None:
        self.server, self.device, self.model, self.channel = server, device, model, channel
        self.stub = InpaintServiceStub(channel)

    async def until(self, condition: Callable[[], object], within_s: float = 5.0) -> None:
        """Wait for something to become true."""
        end = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < end, "it never came true"
            await asyncio.sleep(0.002)

    def call(self, data: bytes = b"abc", *, previews: bool = False, **options: object) -> grpc.aio.UnaryStreamCall:
        return self.stub.Inpaint(InpaintRequest(image=Image(encoded=data), previews=previews), **options)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def config() -> ServerConfig:
    return ServerConfig(queue_limit=2, drain_seconds=5.0)


@pytest.fixture
async def house(model: Model, config: ServerConfig) -> AsyncIterator[House]:
    device = Device("cpu", config.queue_limit)

    async def build(server: Server, config: ServerConfig) -> None:
        server.add(add_InpaintServiceServicer_to_server, Servicer(device, model), SERVICE)

        async def close() -> None:
            device.close()

        server.on_stop(close)

    options = [("grpc.max_receive_message_length", -1)]
    async with (
        await start("inpaint", config, build) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options) as channel,
    ):
        yield House(server, device, model, channel)
