"""Which server a step goes to, and what happens when servers die, freeze, refuse or are none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from router_fakes import (
    FakeServer,
    Wire,
    after,
    at_once,
    erase,
    failing,
    finished,
    kinds,
    one_after_another,
    request,
    results,
    until,
)

from limner.core.errors import (
    BadArgument,
    FieldViolation,
    ModelNotInstalled,
    OutOfMemory,
    Overloaded,
    ServerUnavailable,
    Stopping,
    UnknownModel,
)
from limner.router.calls import Caller
from limner.router.pool import Pool, PoolSettings
from limner.router.steps import OPERATIONS
from limner.runtime.config import ConfigError
from limner.runtime.status import from_status
from limner.v1 import blobs_pb2, inpaint_pb2, models_pb2, progress_pb2, router_pb2


@pytest.fixture
async def wire(fake: FakeServer) -> AsyncIterator[Wire]:
    """A wire to `fake`."""
    made = Wire(fake.port)
    await made.start()
    yield made
    await made.cut()


def working(fake: FakeServer) -> Any:
    async def look() -> bool:
        return bool(fake.calls)

    return until(look)


# --- choosing


async def test_calls_go_to_the_server_with_the_fewest(routers: Any, fakes: Any) -> None:
    servers = [await fakes() for _ in range(3)]
    router = await routers(inpaint=[server.address for server in servers])
    for server in servers:
        server.script("inpaint", after(0.3))
    await router.run(request(*(erase(f"step{i}") for i in range(6))))
    assert [len(server.calls) for server in servers] == [2, 2, 2]


async def test_servers_that_have_equally_few_take_turns(routers: Any, fakes: Any) -> None:
    servers = [await fakes(), await fakes()]
    router = await routers(inpaint=[server.address for server in servers])
    for _ in range(6):
        await router.run(request(erase()))
    assert [len(server.calls) for server in servers] == [3, 3]


async def test_a_server_that_says_not_serving_gets_no_calls_until_it_serves_again(routers: Any, fakes: Any) -> None:
    ill, well = await fakes(), await fakes()
    router = await routers(inpaint=[ill.address, well.address])
    await ill.say(False)
    await until(lambda: healthy_are(router, {well.address}))
    for _ in range(4):
        await router.run(request(erase()))
    assert not ill.calls
    await ill.say(True)
    await router.until_healthy(ill.address)
    await router.run(request(erase("a"), erase("b")))
    assert len(ill.calls) == 1


async def healthy_are(router: Any, addresses: set[str]) -> bool:
    return {server.address for server in (await router.status()).servers if server.healthy} == addresses


async def test_garbage_on_the_port_is_just_not_healthy(routers: Any, fake: Any) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 418 I'm a teapot\r\n\r\n" + bytes(range(256)))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    garbage = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        router = await routers(inpaint=[garbage, fake.address], segment=[garbage], wait=False)
        await router.until_healthy(fake.address)
        for _ in range(3):
            await router.run(request(erase()))
        assert await healthy_are(router, {fake.address})
        _, error = await router.fail(request({"name": "object", "segment": {"options": {}}}))
        assert isinstance(error, ServerUnavailable)
        assert error.metadata == {"kind": "segment", "address": garbage, "step": "object"}


async def test_a_step_waits_a_little_for_a_server_that_is_starting(routers: Any) -> None:
    late = FakeServer()
    await late.start()
    port = late.port
    await late.stop()
    router = await routers(inpaint=[f"127.0.0.1:{port}"], connect_wait=5.0, wait=False)
    running = asyncio.create_task(router.run(request(erase())))
    await asyncio.sleep(0.2)
    late = FakeServer()
    await late.start(port)
    try:
        assert kinds(await running)[-1] == "run_finished"
    finally:
        await late.stop()


async def test_no_server_of_a_kind_is_told_with_the_setting_to_change(routers: Any) -> None:
    router = await routers()
    _, error = await router.fail(request(erase()))
    assert isinstance(error, ServerUnavailable)
    assert "router.inpaint" in error.message
    assert error.metadata["step"] == "fill"


async def test_a_name_is_looked_up_and_each_of_its_addresses_is_a_server(fakes: Any, monkeypatch: Any) -> None:
    servers = [await fakes(), await fakes()]
    known = [servers[0].port]

    async def lookup(host: str, port: str, **_: Any) -> list[Any]:
        assert (host, port) == ("inpaint.limner", "7401")
        return [(2, 1, 6, "", ("127.0.0.1", number)) for number in known]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    pool = Pool({"inpaint": ["dns:///inpaint.limner:7401"]}, PoolSettings(resolve_interval=0.05))
    await pool.start()

    async def knows(*ports: int) -> bool:
        return [backend.address for backend in pool.backends() if backend.usable] == sorted(
            f"127.0.0.1:{port}" for port in ports
        )

    try:
        await until(lambda: knows(servers[0].port))
        known.append(servers[1].port)
        await until(lambda: knows(servers[0].port, servers[1].port))
        del known[0]
        await until(lambda: knows(servers[1].port))
    finally:
        await pool.close()


# --- dying


async def test_a_server_that_dies_in_mid_call_gives_a_retry_on_another(
    routers: Any, fakes: Any, wire: Any, fake: Any
) -> None:
    other = await fakes()
    router = await routers(inpaint=[wire.address, other.address], connect_wait=2.0)
    await other.say(False)
    await until(lambda: healthy_are(router, {wire.address}))
    fake.script("inpaint", after(30))
    running = asyncio.create_task(router.run(request(erase())))
    await working(fake)
    await other.say(True)
    await wire.cut()
    events = await asyncio.wait_for(running, 5)
    assert kinds(events, "fill") == ["started", "retried", "queued", "started", "progress", "result", "finished"]
    retried = next(event.retried for event in events if event.HasField("retried"))
    assert retried.attempt == 2
    assert wire.address in retried.reason
    assert len(other.calls) == 1


async def test_a_frozen_server_is_noticed_by_its_silence(routers: Any, fakes: Any, wire: Any, fake: Any) -> None:
    other = await fakes()
    router = await routers(inpaint=[wire.address, other.address], keepalive_time=0.3, keepalive_timeout=0.3)
    for server in (fake, other):
        server.script("inpaint", one_after_another(after(0.5)))
    first = asyncio.create_task(router.run(request(erase("a"), erase("b"))))
    await working(fake)
    wire.freeze()
    began = time.monotonic()
    events = await asyncio.wait_for(first, 10)
    assert time.monotonic() - began < 5
    assert kinds(events).count("retried") == 1
    assert await healthy_are(router, {other.address})
    wire.thaw()
    await router.until_healthy(wire.address)


async def test_the_only_server_dying_is_told_with_kind_address_and_step(routers: Any, wire: Any, fake: Any) -> None:
    router = await routers(inpaint=[wire.address])
    fake.script("inpaint", after(30))
    failing_run = asyncio.create_task(router.fail(request(erase())))
    await working(fake)
    await wire.cut()
    events, error = await asyncio.wait_for(failing_run, 5)
    assert isinstance(error, ServerUnavailable)
    assert error.metadata["kind"] == "inpaint"
    assert error.metadata["step"] == "fill"
    assert wire.address in error.message
    assert kinds(events)[-1] == "run_failed"


async def test_nothing_is_retried_after_a_result_or_a_preview(routers: Any, fakes: Any) -> None:
    servers = [await fakes(), await fakes()]
    router = await routers(inpaint=[server.address for server in servers])

    async def result_then_gone(call: Any) -> Any:
        yield call.result()
        raise Stopping("the server is stopping")

    async def preview_then_gone(call: Any) -> Any:
        yield "preview", progress_pb2.Preview(step=1)
        raise Stopping("the server is stopping")

    for script in (result_then_gone, preview_then_gone):
        for server in servers:
            server.calls.clear()
            server.script("inpaint", script)
        await router.until_healthy(*(server.address for server in servers))
        events, error = await router.fail(request(erase(), previews=True))
        assert isinstance(error, ServerUnavailable)
        assert "retried" not in kinds(events)
        assert sum(len(server.calls) for server in servers) == 1


async def test_three_tries_are_all_there_are(routers: Any, fakes: Any) -> None:
    servers = [await fakes() for _ in range(4)]
    for server in servers:
        server.script("inpaint", failing(Stopping("the server is stopping")))
    router = await routers(inpaint=[server.address for server in servers])
    events, error = await router.fail(request(erase()))
    assert isinstance(error, ServerUnavailable)
    assert [event.retried.attempt for event in events if event.HasField("retried")] == [2, 3]
    assert sum(len(server.calls) for server in servers) == 3


async def test_a_server_that_comes_back_is_tried_again(routers: Any, fake: Any) -> None:
    fake.script("inpaint", one_after_another(failing(Stopping("the server is stopping")), at_once))
    router = await routers(inpaint=[fake.address], connect_wait=2.0)
    assert "retried" in kinds(await router.run(request(erase())))
    assert len(fake.calls) == 2


async def test_a_stream_that_ends_without_a_result_counts_as_a_server_gone(routers: Any, fake: Any) -> None:
    async def nothing(call: Any) -> Any:
        yield "started", progress_pb2.Started()

    fake.script("inpaint", one_after_another(nothing, at_once))
    router = await routers(inpaint=[fake.address], connect_wait=2.0)
    assert "retried" in kinds(await router.run(request(erase())))


# --- refusing


async def test_a_full_server_is_left_for_another_at_once(routers: Any, fakes: Any) -> None:
    full, free = await fakes(), await fakes()
    full.script("inpaint", failing(Overloaded("the queue is full", retry_after=20)))
    router = await routers(inpaint=[full.address, free.address])
    began = time.monotonic()
    events = [await router.run(request(erase())) for _ in range(2)]
    assert time.monotonic() - began < 1
    assert all(kinds(run)[-1] == "run_finished" for run in events)
    assert len(free.calls) == 2


async def test_a_full_server_is_asked_again_when_it_said(routers: Any, fake: Any) -> None:
    refusing = failing(Overloaded("the queue is full", retry_after=0.2))
    fake.script("inpaint", one_after_another(refusing, refusing, refusing, refusing, at_once))
    router = await routers(inpaint=[fake.address])
    began = time.monotonic()
    await router.run(request(erase()), timeout=10)
    assert 0.8 <= time.monotonic() - began < 2


async def test_who_waits_for_a_full_server_comes_before_who_comes_later(routers: Any, fake: Any) -> None:
    order: list[str] = []
    places = 1

    async def one_place(call: Any) -> Any:
        nonlocal places
        if not places:
            raise Overloaded("the queue is full", retry_after=0.05)
        places -= 1
        order.append(call.metadata["limner-step"])
        yield "started", progress_pb2.Started()
        await asyncio.sleep(0.03)
        places += 1
        yield call.result()
        yield finished()

    fake.script("inpaint", one_place)
    router = await routers(inpaint=[fake.address])
    names = [f"step{i}" for i in range(8)]
    runs = []
    for name in names:
        runs.append(asyncio.create_task(router.run(request(erase(name)))))
        await asyncio.sleep(0.02)
    await asyncio.wait_for(asyncio.gather(*runs), 10)
    assert order == names


async def test_a_refusal_is_passed_on_if_the_deadline_leaves_no_time(routers: Any, fake: Any) -> None:
    fake.script("inpaint", failing(Overloaded("the queue is full", retry_after=5)))
    router = await routers(inpaint=[fake.address])
    began = time.monotonic()
    _, error = await router.fail(request(erase()), timeout=2)
    assert time.monotonic() - began < 1
    assert isinstance(error, Overloaded)
    assert error.retry_after == 5
    assert error.metadata["step"] == "fill"


@pytest.mark.parametrize(
    "error",
    [
        UnknownModel("lama2", available=["telea"]),
        ModelNotInstalled("the weights are not here"),
        OutOfMemory("the device has not enough memory"),
    ],
)
async def test_other_errors_are_passed_on_with_the_steps_name(router: Any, fake: Any, error: Any) -> None:
    fake.script("inpaint", failing(error))
    _, told = await router.fail(request(erase()))
    assert type(told) is type(error)
    assert told.message == error.message
    assert told.metadata == {**error.metadata, "step": "fill"}
    assert len(fake.calls) == 1


async def test_a_servers_violations_become_fields_of_the_request(router: Any, fake: Any) -> None:
    fields = ["options.radius_px", "image", "mask.raw", "output.quality", "elsewhere"]
    fault = BadArgument("wrong", violations=[FieldViolation(field, "is wrong") for field in fields])
    fake.script("upscale", at_once)
    fake.script("inpaint", failing(fault))
    _, error = await router.fail(
        request({"name": "big", "upscale": {}}, {"name": "fill", "inpaint": {"image": "big", "mask": "hole"}})
    )
    assert [violation.field for violation in error.violations] == [
        "pipeline.steps[1].inpaint.options.radius_px",
        "pipeline.steps[1].inpaint.image",
        "inputs[hole].raw",
        "pipeline.steps[1].output.quality",
        "pipeline.steps[1].inpaint.elsewhere",
    ]


async def test_violations_of_making_pictures_become_fields_of_the_request(router: Any, fake: Any) -> None:
    fields = ["options.generate.width_px", "prompt", "image", "mask", "options.generate.loras[0].name"]
    fault = BadArgument("wrong", violations=[FieldViolation(field, "is wrong") for field in fields])
    fake.script("edit", failing(fault))
    _, error = await router.fail(request({"name": "pear", "edit": {"prompt": "a pear"}}))
    assert [violation.field for violation in error.violations] == [
        "pipeline.steps[0].edit.options.generate.width_px",
        "pipeline.steps[0].edit.prompt",
        "inputs[source]",
        "pipeline.steps[0].edit.mask",
        "pipeline.steps[0].edit.options.generate.loras[0].name",
    ]


# --- models and status


async def test_models_of_all_servers_are_listed_as_one(routers: Any, fakes: Any) -> None:
    first, second, third = [await fakes() for _ in range(3)]
    installed, loaded = models_pb2.MODEL_STATE_INSTALLED, models_pb2.MODEL_STATE_LOADED
    first.models = [
        models_pb2.Model(name="telea", server="inpaint", task="inpaint", state=installed),
        models_pb2.Model(name="ns", server="inpaint", task="inpaint", state=installed),
    ]
    second.models = [models_pb2.Model(name="telea", server="inpaint", task="inpaint", state=loaded)]
    third.models = [models_pb2.Model(name="grabcut", server="segment", task="segment", state=installed)]
    router = await routers(inpaint=[first.address, second.address], segment=[third.address])
    listed = (await router.models.ListModels(models_pb2.ListModelsRequest())).models
    assert [model.name for model in listed] == ["ns", "telea", "grabcut"]
    assert listed[1].state == loaded
    only = (await router.models.ListModels(models_pb2.ListModelsRequest(task="segment"))).models
    assert [model.name for model in only] == ["grabcut"]
    assert (await router.models.GetModel(models_pb2.GetModelRequest(name="ns"))).model.name == "ns"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.models.GetModel(models_pb2.GetModelRequest(name="lama"))
    error = from_status(caught.value)
    assert isinstance(error, UnknownModel)
    assert error.metadata["available"] == "grabcut,ns,telea"


async def test_a_model_is_loaded_by_every_server_that_has_it(routers: Any, fakes: Any) -> None:
    servers = [await fakes() for _ in range(3)]
    for server in servers[:2]:
        server.models = [models_pb2.Model(name="telea", server="inpaint")]
    router = await routers(inpaint=[server.address for server in servers])
    loading = router.models.LoadModel(models_pb2.LoadModelRequest(name="telea"))
    events = [event.WhichOneof("event") async for event in loading]
    assert events == ["started", "started", "result", "finished"]
    assert [len(server.called("load")) for server in servers] == [1, 1, 0]


async def test_status_tells_of_servers_and_runs(routers: Any, fakes: Any) -> None:
    busy, idle = await fakes(), await fakes()
    busy.script("inpaint", after(0.5))
    router = await routers(inpaint=[busy.address], segment=[idle.address])
    running = asyncio.create_task(router.run(request(erase())))
    await working(busy)
    status = await router.status()
    assert [(server.kind, server.active_call_count, server.healthy) for server in status.servers] == [
        ("inpaint", 1, True),
        ("segment", 0, True),
    ]
    assert status.active_run_count == 1
    assert status.blob_quota_bytes > 0
    assert status.version
    await running


async def test_results_that_took_a_detour_are_the_same(routers: Any, fakes: Any) -> None:
    dying, other = await fakes(), await fakes()
    dying.script("inpaint", one_after_another(failing(Stopping("stopping")), at_once))
    router = await routers(inpaint=[dying.address, other.address])
    for _ in range(2):
        assert results(await router.run(request(erase()))) == {"fill": "png:inpaint(photo,hole)"}
    assert finished()[0] == "finished"


async def test_the_callers_trace_goes_on_at_the_server(router: Any, fake: Any) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    await router.run(request(erase()), metadata=(("traceparent", f"00-{trace}-b7ad6b7169203331-01"),))
    assert fake.calls[0].metadata["traceparent"].split("-")[1] == trace


async def test_a_directory_for_blobs_that_cannot_be_used_is_told_by_its_setting(routers: Any, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(ConfigError, match=r"router\.blob_dir"):
        await routers(blob_dir=str(tmp_path / "file" / "blobs"))


async def test_a_router_that_stops_ends_its_runs_at_the_servers(routers: Any, fake: Any) -> None:
    router = await routers(inpaint=[fake.address])
    fake.script("inpaint", after(30))
    failing_run = asyncio.create_task(router.fail(request(erase(), detached=True)))
    await working(fake)
    await router.server.stop()
    await asyncio.wait_for(fake.calls[0].over.wait(), 2)
    assert fake.calls[0].cancelled
    await failing_run


async def test_a_run_that_a_stopping_router_gives_up_is_told_so(routers: Any, fake: Any) -> None:
    router = await routers(inpaint=[fake.address], drain_seconds=0.2)
    fake.script("inpaint", after(30))
    failing_run = asyncio.create_task(router.fail(request(erase())))
    await working(fake)
    await router.server.stop()
    events, error = await failing_run
    assert isinstance(error, Stopping)
    assert kinds(events)[-1] == "run_failed"


async def test_while_a_router_stops_its_runs_can_be_watched_and_cancelled_and_none_begun(
    routers: Any, fakes: Any
) -> None:
    fake = await fakes()
    router = await routers(inpaint=[fake.address], drain_seconds=10)
    fake.script("inpaint", after(30))
    call = router.stub.Run(request(erase(), detached=True))
    run_id = (await call.read()).event.accepted.run_id
    await working(fake)
    call.cancel()
    stopping = asyncio.create_task(router.server.stop())
    await asyncio.sleep(0.1)
    _, error = await router.fail(request(erase()))
    assert isinstance(error, Stopping)
    watching = router.stub.WatchRun(router_pb2.WatchRunRequest(run_id=run_id))
    assert (await watching.read()).event.accepted.run_id == run_id
    assert (await router.stub.CancelRun(router_pb2.CancelRunRequest(run_id=run_id))).cancelled
    while (response := await watching.read()).event.WhichOneof("event") != "run_failed":
        pass
    assert "cancelled by CancelRun" in response.event.run_failed.error.message
    await asyncio.wait_for(stopping, 3)


async def test_a_result_can_be_fetched_from_a_router_that_stops(routers: Any, fake: Any) -> None:
    router = await routers(inpaint=[fake.address], drain_seconds=10)
    fake.script("inpaint", after(0.3))
    running = asyncio.create_task(router.run(request(erase(), inline_limit_bytes=0)))
    await working(fake)
    stopping = asyncio.create_task(router.server.stop())
    result = next(event.result for event in await running if event.HasField("result"))
    await asyncio.sleep(0.1)
    pieces = router.blobs.DownloadBlob(blobs_pb2.DownloadBlobRequest(blob_id=result.image.blob_id))
    assert b"".join([piece.data async for piece in pieces]) == b"png:inpaint(photo,hole)"
    await asyncio.wait_for(stopping, 3)


async def test_a_cancellation_that_comes_with_a_servers_recovery_is_not_lost(fake: Any) -> None:
    pool = Pool({"inpaint": [fake.address]}, PoolSettings(connect_wait=20))
    choosing = asyncio.create_task(pool.choose("inpaint", tried=set()))
    await asyncio.sleep(0.01)
    pool._bell.ring()  # sets the event that `choose` waits for, in the same turn of the loop in which it is cancelled
    await asyncio.sleep(0)
    choosing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(choosing, 2)


async def test_a_detached_run_is_waited_for_when_the_router_stops(routers: Any, fake: Any) -> None:
    router = await routers(inpaint=[fake.address], drain_seconds=5.0)
    fake.script("inpaint", after(0.4))
    call = router.stub.Run(request(erase(), detached=True))
    await working(fake)
    call.cancel()
    await router.server.stop()
    assert fake.calls[0].ended
    assert not fake.calls[0].cancelled


async def test_a_call_that_is_given_up_in_the_middle_ends_at_its_server(fake: FakeServer) -> None:
    """The end of a task cancels the call it waits for; an error of the router's own, while it reads, does not."""
    fake.script("inpaint", after(30))
    pool = Pool({"inpaint": [fake.address]}, PoolSettings())
    await pool.start()

    def tell(kind: str, message: Any) -> None:
        raise RuntimeError("the journal is gone")

    caller = Caller(pool, "run", previews=False, remaining=lambda: None, margin=0.1, overload_wait=1.0)
    operation = OPERATIONS["inpaint"]
    try:
        with pytest.raises(RuntimeError, match="journal") as kept:  # what it raised, and its frames, are held on to
            await caller.call(operation, inpaint_pb2.InpaintRequest(), step="fill", tell=tell)

        async def ended() -> bool:
            return fake.calls[0].cancelled

        await until(ended)
        assert kept.value
    finally:
        await pool.close()
