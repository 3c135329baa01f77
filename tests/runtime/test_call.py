"""A call from admission to its last event, over a real channel."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import threading
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from limner.core import errors
from limner.core.errors import BadArgument, BadImage, Overloaded
from limner.runtime.call import Joining, Mailbox, stream
from limner.runtime.job import Job
from limner.runtime.messages import check_enum
from limner.runtime.status import from_status
from limner.v1.images_pb2 import Image
from limner.v1.inpaint_pb2 import InpaintOptions, InpaintRequest, InpaintResponse, InpaintStrategy


async def events(call):
    return [(response.WhichOneof("event"), response) async for response in call]


async def error_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await events(call)
    return from_status(raised.value)


class Hold:
    """Keeps the device busy until it is let go; checks as work should."""

    def __init__(self):
        self._go = threading.Event()

    def __call__(self, job, step):
        while not self._go.wait(0.005):
            job.check()

    def let_go(self):
        self._go.set()


@pytest.fixture
def hold(model):
    """The model waits at its first step until told to go."""
    model.before_step = Hold()
    yield model.before_step
    model.before_step.let_go()


async def first_event(call):
    response = await anext(aiter(call))
    return response.WhichOneof("event"), response


async def test_events_come_in_the_order_of_the_contract(house):
    got = await events(house.call(b"abc", previews=True))
    names = [name for name, _ in got]
    assert names[0] == "queued"
    assert names.index("started") < min(names.index("progress"), names.index("preview"))
    assert names[-2:] == ["result", "finished"]
    assert got[-2][1].result.image.encoded == b"cba"
    assert got[0][1].queued.position == 0
    started = got[names.index("started")][1].started.placement
    assert (started.device, started.precision, started.engine, started.reason) == ("cpu", "native", "numpy", "a test")


async def test_finished_tells_times_seed_and_model(house):
    got = await events(house.stub.Inpaint(InpaintRequest(image=Image(encoded=b"x"), options=InpaintOptions(seed=7))))
    finished = got[-1][1].finished
    assert [timing.stage for timing in finished.timings] == ["queue", "decode", "reverse", "encode"]
    assert finished.timings[2].duration.ToNanoseconds() > 3 * 2e6
    assert (finished.seed, finished.model, finished.model_digest) == (7, "reverse", "abc")


async def test_a_seed_is_drawn_where_none_is_given(house):
    seeds = {(await events(house.call()))[-1][1].finished.seed for _ in range(3)}
    assert len(seeds) == 3


async def test_previews_come_only_if_asked_for(house):
    assert "preview" not in {name for name, _ in await events(house.call())}


async def test_progress_tells_steps_and_what_is_left(house, model):
    model.steps, model.step_s = 4, 0.02
    progress = [response.progress for name, response in await events(house.call()) if name == "progress"]
    own = [each for each in progress if each.stage == "reverse"]
    assert [each.step for each in own] == sorted(each.step for each in own)
    assert own[-1].step_count == 4
    assert all(each.HasField("eta") == (each.step > 0) for each in own)


async def test_calls_run_in_the_order_in_which_they_came(house, model, hold):
    model.steps = 1
    calls = [house.call(b"0")]
    await house.until(model.running.is_set)
    for data in (b"1", b"2"):
        calls.append(house.call(data))
        assert (await first_event(calls[-1]))[0] == "queued"
    hold.let_go()
    for call in calls:
        await events(call)
    assert model.runs == [b"0", b"1", b"2"]


async def test_waiting_calls_are_told_when_they_move_up_and_how_long_it_will_take(house, model, hold):
    first = house.call(b"0")
    await house.until(model.running.is_set)
    second, third = house.call(b"1"), house.call(b"2")
    assert (await first_event(second))[1].queued.position == 1
    assert (await first_event(third))[1].queued.position == 2
    second.cancel()
    name, response = await first_event(third)
    assert (name, response.queued.position) == ("queued", 1)
    assert not response.queued.HasField("eta")  # nothing has been seen to finish
    hold.let_go()
    await events(first)
    await events(third)
    house.model.before_step = Hold()
    running = house.call(b"3")
    await house.until(model.running.is_set)
    waiting = house.call(b"4")
    assert (await first_event(waiting))[1].queued.HasField("eta")
    house.model.before_step.let_go()
    await events(running)
    await events(waiting)


async def test_a_full_queue_refuses_before_the_first_header_and_says_when_to_come_again(house, model, hold):
    calls = [house.call(b"0")]
    await house.until(model.running.is_set)
    for _ in range(2):
        calls.append(house.call())
        await first_event(calls[-1])
    refused = house.call(b"no")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await events(refused)
    assert await refused.initial_metadata() == grpc.aio.Metadata()
    error = from_status(raised.value)
    assert type(error) is Overloaded
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.retry_after is not None
    pushback = dict(raised.value.trailing_metadata())["grpc-retry-pushback-ms"]
    assert int(pushback) == round(error.retry_after * 1000) >= 100
    hold.let_go()
    for call in calls:
        await events(call)
    assert b"no" not in model.runs


async def test_calls_that_come_at_once_fill_the_device_and_the_queue_and_no_more(house, model, hold):
    calls = [house.call(b"%d" % number) for number in range(5)]
    firsts = await asyncio.gather(*(first_event(call) for call in calls), return_exceptions=True)
    assert [isinstance(first, grpc.aio.AioRpcError) for first in firsts].count(True) == 2
    for call in calls:
        call.cancel()


async def test_grpcs_own_retries_get_through_once_there_is_room(house, model, hold):
    """A refusal after headers could not be retried, so this also proves that there were none."""
    config = (
        '{"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":5,"initialBackoff":"0.01s","maxBackoff":"0.1s",'
        '"backoffMultiplier":2,"retryableStatusCodes":["RESOURCE_EXHAUSTED"]}}]}'
    )
    address = f"127.0.0.1:{house.server.port}"
    async with grpc.aio.insecure_channel(address, [("grpc.service_config", config)]) as channel:
        calls = [house.call(b"0")]
        await house.until(model.running.is_set)
        for _ in range(2):
            calls.append(house.call())
            await first_event(calls[-1])
        retried = asyncio.create_task(
            events(type(house.stub)(channel).Inpaint(InpaintRequest(image=Image(encoded=b"r"))))
        )
        await asyncio.sleep(0.05)
        hold.let_go()
        for call in calls:
            await events(call)
        assert (await retried)[-1][0] == "finished"


async def test_a_cancelled_call_leaves_the_device_free_at_the_next_step(house, model):
    model.steps, model.step_s = 10_000, 0.005
    waits = []
    for _ in range(8):
        call = house.call()
        await house.until(model.running.is_set)
        cancelled = time.monotonic()
        call.cancel()
        await house.until(lambda: not model.running.is_set())
        waits.append(model.free_at - cancelled)
    assert sorted(waits)[-2] < 0.1, waits


async def test_a_client_that_vanishes_leaves_the_device_free(house, model):
    model.steps, model.step_s = 10_000, 0.005
    async with grpc.aio.insecure_channel(f"127.0.0.1:{house.server.port}") as channel:
        call = type(house.stub)(channel).Inpaint(InpaintRequest(image=Image(encoded=b"x")))
        await first_event(call)
        await house.until(model.running.is_set)
    await house.until(lambda: not house.device.busy, 1.0)


async def test_a_call_cancelled_while_it_waits_never_runs(house, model, hold):
    first = house.call(b"0")
    await house.until(model.running.is_set)
    second = house.call(b"1")
    await first_event(second)
    second.cancel()
    await house.until(lambda: house.device.waiting == 0)
    hold.let_go()
    await events(first)
    assert model.runs == [b"0"]


async def test_a_call_whose_deadline_passes_while_it_waits_never_runs(house, model, hold):
    first = house.call(b"0")
    await house.until(model.running.is_set)
    error = await error_of(house.call(b"1", timeout=0.1))
    assert type(error) is errors.DeadlineExceeded
    await house.until(lambda: house.device.waiting == 0)
    hold.let_go()
    await events(first)
    assert model.runs == [b"0"]


async def test_a_deadline_that_passes_while_working_ends_the_work(house, model):
    model.steps, model.step_s = 10_000, 0.005
    error = await error_of(house.call(timeout=0.15))
    assert type(error) is errors.DeadlineExceeded
    await house.until(lambda: not house.device.busy, 1.0)


async def test_a_reader_that_never_reads_does_not_hold_the_device(house, model):
    """Its progress and its result of 16 MiB are more than gRPC takes in unread."""
    stalled = house.call(bytes(16 << 20))
    await house.until(lambda: model.runs == [bytes(16 << 20)] and not house.device.busy)
    assert (await events(house.call(b"next")))[-1][0] == "finished"
    got = [name for name, _ in await events(stalled)]  # and it misses nothing that matters when it reads at last
    assert got[-2:] == ["result", "finished"]


async def test_a_slow_reader_misses_progress_and_never_the_result(house, model):
    model.steps, model.step_s = 3000, 0.0
    model.before_step = lambda job, step: job.preview(Image(encoded=bytes(64 << 10)), step)
    call = house.call(previews=True)
    await first_event(call)
    await house.until(lambda: model.runs and not house.device.busy, 20)
    got = await events(call)
    assert [name for name, _ in got][-2:] == ["result", "finished"]
    assert len(got) < 1500


async def test_a_fault_in_the_work_fails_that_call_alone_and_shows_no_secrets(house, model, caplog):
    def fault(job, step):
        raise ZeroDivisionError("secret")

    model.before_step = fault
    with caplog.at_level(logging.ERROR):
        error = await error_of(house.call())
    assert type(error) is errors.InternalFault
    assert "secret" not in error.message
    assert error.metadata["error_id"] in caplog.text
    model.before_step = lambda job, step: None
    assert (await events(house.call()))[-1][0] == "finished"


@pytest.mark.parametrize(
    "raised", [SystemExit(3), StopIteration(), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr
)
@pytest.mark.parametrize("where", ["decode", "run"])
async def test_no_exception_ends_the_server_or_leaves_the_caller_waiting(house, model, raised, where, caplog):
    def fault(*_):
        raise raised

    if where == "run":
        model.before_step = fault
    else:
        model.decode = fault
    assert type(await error_of(house.call(timeout=5))) is errors.InternalFault
    model.before_step, model.decode = (lambda job, step: None), (lambda request: request.image.encoded)
    assert (await events(house.call()))[-1][0] == "finished"


@pytest.mark.parametrize("where", ["decode", "run"])
async def test_limners_errors_arrive_with_their_details(house, model, where):
    def refuse(*_):
        raise BadImage("image is cut off; send it again", field="image", metadata={"a": "b"})

    if where == "run":
        model.before_step = refuse
    else:
        model.decode = refuse
    error = await error_of(house.call())
    assert type(error) is BadImage
    assert (error.violations[0].field, error.metadata) == ("image", {"a": "b"})
    assert not house.device.busy
    assert house.device.waiting == 0


async def test_a_call_that_fails_while_decoding_lets_the_next_one_run(house, model, hold):
    first = house.call(b"0")
    await house.until(model.running.is_set)

    def decode(request):
        if request.image.encoded == b"bad":
            raise BadImage("no", field="image")
        return request.image.encoded

    model.decode = decode
    bad, good = house.call(b"bad"), house.call(b"good")
    assert type(await error_of(bad)) is BadImage
    hold.let_go()
    await events(first)
    assert (await events(good))[-1][0] == "finished"


async def test_running_out_of_memory_is_told_as_such(house, model):
    def fault(job, step):
        raise MemoryError

    model.before_step = fault
    assert type(await error_of(house.call())) is errors.OutOfMemory


async def test_an_error_keeps_no_pictures_alive(house, model, monkeypatch):
    monkeypatch.setattr(logging.getLogger("limner.errors"), "disabled", True)  # pytest keeps what is logged
    seen = []

    def decode(request):
        pixels = np.zeros(1000)
        seen.append(weakref.ref(pixels))
        return pixels

    def fault(job, step):
        raise ZeroDivisionError

    model.decode, model.before_step = decode, fault
    gc.disable()
    try:
        await error_of(house.call())
        model.runs.clear()
        await house.until(lambda: seen[0]() is None, 1.0)
    finally:
        gc.enable()


async def test_a_cancelled_call_keeps_no_pictures_alive(house, model):
    jobs = []
    model.steps, model.before_step = 10_000, lambda job, step: jobs.append(weakref.ref(job)) if step == 1 else None
    gc.disable()
    try:
        call = house.call()
        await house.until(lambda: jobs)
        call.cancel()
        await house.until(lambda: not model.running.is_set())
        await house.until(lambda: jobs[0]() is None, 1)
    finally:
        gc.enable()


async def test_enum_values_that_the_server_does_not_know_are_refused(house, model):
    def decode(request):
        check_enum(InpaintStrategy, request.options.strategy, field="options.strategy")
        return b""

    model.decode = decode
    error = await error_of(house.stub.Inpaint(InpaintRequest(options=InpaintOptions(strategy=99))))
    assert type(error) is BadArgument
    assert error.violations[0].field == "options.strategy"
    assert "INPAINT_STRATEGY_CROP" in error.message


async def test_a_line_of_undecoded_calls_is_decoded_only_near_its_head(house, model, hold):
    decoded = []
    house.device.queue_limit = 8

    def decode(request):
        decoded.append(request.image.encoded)
        return request.image.encoded

    model.decode = decode
    calls = [house.call(b"0")]
    await house.until(model.running.is_set)
    for number in range(1, 7):
        calls.append(house.call(b"%d" % number))
        await first_event(calls[-1])
    await asyncio.sleep(0.05)
    assert sorted(decoded) == [b"0", b"1", b"2"]
    hold.let_go()
    for call in calls:
        await events(call)
    assert model.runs == [b"%d" % number for number in range(7)]


async def test_open_calls_are_bounded_even_if_nothing_waits(house, monkeypatch):
    """Readers that stall hold their results in the server's memory."""
    monkeypatch.setattr("limner.runtime.device.OPEN_CALLS_PER_PLACE", 1)
    house.device.queue_limit = 1
    stalled = house.call(bytes(16 << 20))
    await house.until(lambda: house.model.runs and not house.device.busy)
    assert type(await error_of(house.call(b"x"))) is Overloaded
    stalled.cancel()
    await house.until(lambda: not house.device._open_calls)
    assert (await events(house.call(b"x")))[-1][0] == "finished"


async def test_a_call_that_arrives_too_late_is_refused_at_once(house, model):
    class Late:
        """A context whose deadline has passed; gRPC's own clients do not send such calls."""

        def time_remaining(self):
            return 0.0

    responses = stream(Late(), house.device, InpaintResponse, model.work(InpaintRequest()))
    with pytest.raises(errors.DeadlineExceeded):
        await anext(responses)
    assert house.device.waiting == 0


async def test_a_mailbox_keeps_the_latest_of_each_kind_and_wakes_its_reader_once():
    loop = asyncio.get_running_loop()
    mailbox = Mailbox()
    mailbox.put("started", 0)
    woken = 0

    def counted(callback):
        nonlocal woken
        woken += 1
        loop.call_soon(callback)

    mailbox._loop = SimpleNamespace(call_soon_threadsafe=counted)
    assert await mailbox.take() == ("started", 0)
    for step in range(10_000):
        mailbox.put("progress", step)
        mailbox.put("preview", step)
    mailbox.put("result", "picture")
    mailbox.close()
    assert woken == 1
    taken = [await mailbox.take() for _ in range(4)]
    assert taken == [("progress", 9999), ("preview", 9999), ("result", "picture"), None]


async def test_a_mailbox_keeps_the_latest_preview_of_each_picture():
    mailbox = Mailbox()
    job = Job(seed=0, previews=True, deadline=None, publish=mailbox.put)
    mailbox.put("started", None)
    for step in range(1, 4):
        for image_index in range(3):
            job.preview(Image(encoded=b"x"), step * 10 + image_index, image_index)
    mailbox.close()
    assert await mailbox.take() == ("started", None)
    previews = [(await mailbox.take())[1] for _ in range(3)]
    assert [(preview.image_index, preview.step) for preview in previews] == [(0, 30), (1, 31), (2, 32)]
    assert await mailbox.take() is None


def joining(model, run):
    """Let the model's calls join a turn that does `run`."""
    join = Joining(run, key=lambda data: "a", size=lambda data: 1, most=lambda data: 4)
    plain = model.work
    model.work = lambda request: replace(plain(request), run=join)


async def test_calls_that_join_a_turn_are_told_that_they_have_begun_and_get_their_own_results(house, model):
    turns = []

    def run(arrivals):
        turns.append([])
        waiting = []
        while waiting or not arrivals.close():
            arrivals.wait(5)
            come = arrivals.take()
            turns[-1] += [member.given for member in come]
            waiting += come
            if any(member.given == b"last" for member in waiting):
                while waiting:
                    member = waiting.pop()
                    with member.job.stage("together"):
                        member.succeed(member.given[::-1])

    joining(model, run)
    calls = [house.call(b"one")]
    while (await anext(aiter(calls[0]))).WhichOneof("event") != "started":
        pass
    calls.append(house.call(b"two"))
    await house.until(lambda: house.device._running == 2)
    calls.append(house.call(b"last"))
    results = [await asyncio.wait_for(events(call), 5) for call in calls]
    assert [got[-2][1].result.image.encoded for got in results] == [b"eno", b"owt", b"tsal"]
    assert [[name for name, _ in got].count("started") for got in results[1:]] == [1, 1]
    stages = [timing.stage for timing in results[1][-1][1].finished.timings]
    assert stages == ["queue", "decode", "together", "encode"]
    assert turns[0][0] == b"one"
    assert sorted(itertools.chain(*turns)) == [b"last", b"one", b"two"]


async def test_a_call_that_is_over_when_it_joins_is_never_worked_on(house, model):
    seen, go = [], threading.Event()

    def run(arrivals):
        go.wait(5)
        while not arrivals.close():
            for member in arrivals.take():
                seen.append(member.given)
                member.succeed(b"")

    joining(model, run)
    first = house.call(b"0")
    await house.until(lambda: house.device.busy)
    second = house.call(b"1")
    await house.until(lambda: house.device._running == 2)
    second.cancel()
    await asyncio.sleep(0.05)
    go.set()
    await events(first)
    await house.until(lambda: not house.device.busy)
    assert seen == [b"0"]


async def test_finished_tells_what_the_result_was_made_from(house, model):
    model.before_step = lambda job, step: job.parameters.update(sampler="euler")
    assert (await events(house.call()))[-1][1].finished.parameters == {"sampler": "euler"}
