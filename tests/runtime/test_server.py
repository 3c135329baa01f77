"""A server's life: starting, health, limits, stopping, and its process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from limner.core import errors
from limner.runtime.config import ConfigError, ServerConfig
from limner.runtime.server import start
from limner.runtime.status import from_status
from limner.v1.images_pb2 import Image
from limner.v1.inpaint_pb2 import InpaintRequest
from limner.v1.inpaint_pb2_grpc import InpaintServiceStub, add_InpaintServiceServicer_to_server
from limner.v1.models_pb2_grpc import ModelServiceStub

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def nothing(server, config):
    pass


async def health(channel, service=""):
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def events(call):
    return [response.WhichOneof("event") async for response in call]


async def error_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await events(call)
    return from_status(raised.value)


async def test_it_is_not_healthy_until_it_is_built_and_says_so(model):
    loaded = asyncio.Event()
    port = asyncio.get_running_loop().create_future()

    async def build(server, config):
        port.set_result(server.port)
        await loaded.wait()

    starting = asyncio.create_task(start("inpaint", ServerConfig(), build))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await port}") as channel:
        assert await health(channel) == NOT_SERVING
        early = await error_of(InpaintServiceStub(channel).Inpaint(InpaintRequest()))
        assert type(early) is errors.ServerUnavailable
        assert "starting" in early.message
        loaded.set()
        async with await starting:
            assert await health(channel) == SERVING


async def test_every_service_has_its_health(house):
    assert await health(house.channel, "limner.v1.InpaintService") == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await health(house.channel, "limner.v1.Nothing")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_full_server_is_healthy(house, model):
    model.steps, model.step_s = 10_000, 0.005
    calls = [house.call() for _ in range(4)]
    await house.until(lambda: house.device.waiting == house.device.queue_limit and house.device.busy)
    assert await health(house.channel) == SERVING
    for call in calls:
        call.cancel()


async def test_services_can_be_listed_and_looked_into(house):
    stub = reflection_pb2_grpc.ServerReflectionStub(house.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([asked]))
    async for answer in call:
        names = {service.name for service in answer.list_services_response.service}
        assert {"limner.v1.InpaintService", "grpc.health.v1.Health", "grpc.channelz.v1.Channelz"} <= names
    servers = await channelz_pb2_grpc.ChannelzStub(house.channel).GetServers(channelz_pb2.GetServersRequest())
    assert servers.server


async def test_an_unknown_service_is_unimplemented(house):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await ModelServiceStub(house.channel).ListModels(InpaintRequest())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


class TestLimits:
    @pytest.fixture
    def config(self):
        return ServerConfig(max_message_bytes=100_000)

    async def test_a_message_over_the_limit_is_refused_with_reason_limit_and_size(self, house):
        error = await error_of(house.call(bytes(100_001)))
        assert type(error) is errors.ImageTooLarge
        assert error.metadata["limit"] == "100000"
        assert int(error.metadata["actual"]) > 100_000

    async def test_far_over_the_limit_grpc_refuses_and_the_client_still_knows_why(self, house):
        error = await error_of(house.call(bytes(4_000_000)))
        assert type(error) is errors.ImageTooLarge

    async def test_a_result_over_the_limit_is_refused_with_reason(self, house, model):
        model.decode = lambda request: bytes(200_000)
        assert type(await error_of(house.call())) is errors.ImageTooLarge

    async def test_bytes_that_are_no_message_are_refused_with_reason(self, house):
        call = house.channel.unary_stream("/limner.v1.InpaintService/Inpaint")(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in call:
                pass
        assert type(from_status(raised.value)) is errors.BadArgument


async def test_garbage_on_the_port_harms_nobody(house):
    for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 40, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64):
        with socket.create_connection(("127.0.0.1", house.server.port)) as connection:
            connection.sendall(data)
    assert (await events(house.call()))[-1] == "finished"


async def test_a_port_that_is_taken_is_named():
    async with await start("inpaint", ServerConfig(), nothing) as server:
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{server.port}"):
            await start("inpaint", ServerConfig(port=server.port), nothing)


async def test_a_build_that_fails_stops_the_server():
    async def build(server, config):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await start("inpaint", ServerConfig(), build)


async def test_stopping_refuses_new_calls_and_lets_running_ones_end(house, model):
    model.steps, model.step_s = 40, 0.01
    running = house.call(b"abc")
    await house.until(model.running.is_set)
    stopping = asyncio.create_task(house.server.stop())
    await asyncio.sleep(0.05)
    assert await health(house.channel) == NOT_SERVING
    assert type(await error_of(house.call())) is errors.Stopping
    assert (await events(running))[-2:] == ["result", "finished"]
    await stopping
    with pytest.raises(RuntimeError, match="shutdown"):  # the hook closed the device
        house.device._thread.submit(print)


class TestDraining:
    @pytest.fixture
    def config(self):
        return ServerConfig(drain_seconds=0.1)

    async def test_calls_that_take_too_long_are_ended(self, house, model):
        model.steps, model.step_s = 10_000, 0.005
        call = house.call()
        await house.until(model.running.is_set)
        began = time.monotonic()
        await house.server.stop()
        assert 0.1 <= time.monotonic() - began < 1.5
        assert isinstance(await error_of(call), errors.Unavailable | errors.Cancelled)
        await house.until(lambda: not model.running.is_set())


async def test_hurry_ends_the_wait(house, model):
    model.steps, model.step_s = 10_000, 0.005
    house.call()
    await house.until(model.running.is_set)
    stopping = asyncio.create_task(house.server.stop())
    await asyncio.sleep(0.05)
    began = time.monotonic()
    house.server.hurry()
    await stopping
    assert time.monotonic() - began < 1.0


async def test_a_servicer_that_lets_a_cancellation_out_does_not_leave_its_caller_waiting():
    class Confused:
        async def Inpaint(self, request, context):
            raise asyncio.CancelledError
            yield

    async def build(server, config):
        server.add(add_InpaintServiceServicer_to_server, Confused(), "limner.v1.InpaintService")

    async with (
        await start("inpaint", ServerConfig(), build) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        error = await error_of(InpaintServiceStub(channel).Inpaint(InpaintRequest(image=Image()), timeout=5))
        assert type(error) is errors.InternalFault


# ---- as a process -------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from limner.core.placement import Placement
from limner.runtime.call import Work, stream
from limner.runtime.config import ServerConfig
from limner.runtime.device import Device
from limner.runtime.server import run
from limner.v1.inpaint_pb2 import InpaintResponse, InpaintResult
from limner.v1.inpaint_pb2_grpc import InpaintServiceServicer, add_InpaintServiceServicer_to_server

class Servicer(InpaintServiceServicer):
    def __init__(self, device):
        self.device = device
    async def Inpaint(self, request, context):
        seconds = float(request.image.encoded)
        work = Work(lambda job: 0, lambda job, _: time.sleep(seconds), lambda job, _: InpaintResult(),
                    lambda _: Placement("cpu", "native", "numpy", "test"))
        async for response in stream(context, self.device, InpaintResponse, work):
            yield response

async def build(server, config):
    device = Device()
    server.add(add_InpaintServiceServicer_to_server, Servicer(device), "limner.v1.InpaintService")
    async def close():
        device.close()
    server.on_stop(close)

run("inpaint", ServerConfig, build)
"""


class Process:
    """A server's process; `lines` is what it logged so far."""

    def __init__(self, process):
        self.process = process
        self.lines = []

    async def says(self, words):
        while not self.lines or words not in self.lines[-1]:
            line = (await asyncio.wait_for(self.process.stderr.readline(), 20)).decode()
            assert line, "".join(self.lines)
            self.lines.append(line)
        return self.lines[-1]

    async def ends(self):
        self.lines.append((await asyncio.wait_for(self.process.stderr.read(), 20)).decode())
        return await asyncio.wait_for(self.process.wait(), 10)


async def launched(*arguments, **environment):
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("LIMNER_", "OTEL_"))}
    return Process(
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PROGRAM,
            *arguments,
            env=variables | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    )


async def test_a_process_lets_calls_end_when_told_to_stop_and_sends_its_traces():
    server = await launched("--port", "0", OTEL_TRACES_EXPORTER="console")
    port = int((await server.says("listening on")).strip().rpartition(":")[2])
    await server.says("serving after")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = InpaintServiceStub(channel).Inpaint(InpaintRequest(image=Image(encoded=b"0.6")))
        await anext(aiter(call))
        await asyncio.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        await server.says("stopping")
        server.process.send_signal(signal.SIGINT)  # so soon after, it is the same wish told twice
        assert [event async for event in call][-1].WhichOneof("event") == "finished"
    assert await server.ends() == 0
    assert "Traceback" not in "".join(server.lines)
    assert '"name": "limner.v1.InpaintService/Inpaint"' in (await server.process.stdout.read()).decode()


async def test_a_process_ends_at_once_when_told_twice_although_a_thread_works_on_and_no_collector_listens():
    environment = {"LIMNER_INPAINT_LOG_FORMAT": "json", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    server = await launched("--port", "0", **environment)
    port = int(json.loads(await server.says("listening on"))["message"].rpartition(":")[2])
    await server.says("serving after")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stuck = InpaintServiceStub(channel).Inpaint(InpaintRequest(image=Image(encoded=b"60")))
        await anext(aiter(stuck))
        await asyncio.sleep(0.1)
        server.process.send_signal(signal.SIGINT)
        await server.says("stopping")
        await asyncio.sleep(0.4)
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert await server.ends() == 0
        assert time.monotonic() - began < 4
    assert "is given up" in "".join(server.lines)


async def test_a_process_with_a_bad_setting_says_what_to_mend_and_nothing_else():
    server = await launched(LIMNER_INPAINT_QUEUE_LIMIT="many")
    assert await server.ends() == 1
    assert "".join(server.lines).splitlines() == [
        "python -m limner.inpaint: LIMNER_INPAINT_QUEUE_LIMIT: is 'many'; give a whole number"
    ]
