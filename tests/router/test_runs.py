"""Runs as callers see them: events, order, joining, watching, cancelling, deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from router_fakes import after, at_once, erase, failing, finished, kinds, request, results, text_of, until

from limner.core.errors import (
    BadMask,
    Cancelled,
    DeadlineExceeded,
    FieldViolation,
    Overloaded,
    RequestIdConflict,
    RunNotFound,
)
from limner.router.blobs import BlobStore
from limner.router.config import RouterConfig
from limner.router.execution import AT_ONCE
from limner.router.journal import Journal
from limner.router.pool import Pool, PoolSettings
from limner.router.runs import Run, Runs
from limner.runtime import logs
from limner.runtime.status import from_status
from limner.v1 import images_pb2, inpaint_pb2, progress_pb2, router_pb2


async def test_a_chain_of_steps_passes_pixels_raw_and_encodes_only_its_end(router: Any, fake: Any) -> None:
    events = await router.run(
        request(
            {"name": "object", "segment": {"options": {"clicks": [{"xPx": 1, "yPx": 2}]}}},
            {"name": "grown", "mask": {"masks": ["object"], "options": {"operations": [{"grow": {"radiusPx": 3}}]}}},
            {"name": "fill", "inpaint": {"mask": "grown"}},
            {"name": "big", "upscale": {"image": "fill"}, "output": {"format": "webp"}},
        )
    )
    assert results(events) == {"big": "webp:upscale(inpaint(photo,edit_mask(segment(photo))))"}
    assert [call.request.output.format for call in fake.calls] == ["raw", "raw", "raw", "webp"]
    assert fake.called("edit_mask")[0].request.options.operations[0].grow.radius_px == 3


async def test_events_are_numbered_without_gaps_and_begin_and_end_with_the_run(router: Any) -> None:
    events = await router.run(request(erase()))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert kinds(events) == ["accepted", "queued", "started", "progress", "result", "finished", "run_finished"]
    assert all(event.time.seconds for event in events)
    assert [event.step for event in events] == ["", "fill", "fill", "fill", "fill", "fill", ""]
    assert list(events[0].accepted.steps) == ["fill"]


async def test_steps_are_listed_in_an_order_in_which_each_comes_after_its_sources(router: Any) -> None:
    events = await router.run(request({"name": "last", "upscale": {"image": "first"}}, erase("first")))
    assert list(events[0].accepted.steps) == ["first", "last"]


async def test_steps_that_do_not_wait_for_each_other_run_at_the_same_time(router: Any, fake: Any) -> None:
    fake.script("inpaint", after(0.4))
    began = time.monotonic()
    await router.run(request(erase("a"), erase("b"), erase("c")))
    assert time.monotonic() - began < 0.8
    first, *rest = fake.called("inpaint")
    assert all(call.began < first.ended for call in rest)


async def test_a_result_that_is_taken_and_wanted_is_encoded_by_a_call_of_its_own(router: Any, fake: Any) -> None:
    events = await router.run(
        request(
            {**erase(), "output": {"format": "jpeg", "quality": 10}},
            {"name": "big", "upscale": {"image": "fill"}},
            outputs=("fill", "big"),
        )
    )
    assert results(events) == {"fill": "jpeg:convert(inpaint(photo,hole))", "big": "png:upscale(inpaint(photo,hole))"}
    assert fake.called("upscale")[0].request.image.WhichOneof("source") == "raw"
    assert kinds(events, "fill") == ["queued", "started", "progress", "result", "finished"]
    last = next(event for event in events if event.step == "fill" and event.HasField("finished"))
    assert [timing.stage for timing in last.finished.timings] == ["convert"]


async def test_a_mask_that_is_taken_and_wanted_becomes_png(router: Any, fake: Any) -> None:
    events = await router.run(
        request(
            {"name": "object", "segment": {"options": {}}},
            {"name": "fill", "inpaint": {"mask": "object"}},
            intermediates=True,
        )
    )
    assert results(events)["object"] == "png:convert(segment(photo))"
    result = next(event.result for event in events if event.step == "object" and event.HasField("result"))
    assert result.kind == router_pb2.RESULT_KIND_MASK
    assert result.score == 0.5


async def test_pictures_are_made_edited_and_extended(router: Any, fake: Any) -> None:
    events = await router.run(
        request(
            {"name": "apple", "generate": {"prompt": "an apple", "options": {"stepCount": 4}}},
            {"name": "pear", "edit": {"image": "apple", "mask": "hole", "prompt": "a pear"}},
            {"name": "wide", "outpaint": {"image": "pear", "options": {"leftPx": 64}}, "output": {"format": "webp"}},
            {"name": "variation", "edit": {"options": {"strength": 0.5}}},
        )
    )
    assert results(events) == {
        "wide": "webp:outpaint(edit(generate(an apple),hole,a pear))",
        "variation": "png:edit(photo)",
    }
    assert fake.called("generate")[0].request.options.step_count == 4
    assert fake.called("outpaint")[0].request.options.left_px == 64
    assert sorted(call.request.options.strength for call in fake.called("edit")) == [0, 0.5]


async def test_several_pictures_are_a_result_each_and_the_first_goes_on(router: Any, fake: Any) -> None:
    apples = {"name": "apple", "generate": {"prompt": "an apple", "options": {"imageCount": 3}}}

    def told(events: Any) -> list[tuple[str, int, str]]:
        found = [event for event in events if event.HasField("result")]
        return [(event.step, event.result.image_index, text_of(event.result.image)) for event in found]

    made = [("apple", i, f"png:generate(an apple){f'#{i}' if i else ''}") for i in range(3)]
    assert told(await router.run(request(apples, inputs={}))) == made

    big = {"name": "big", "upscale": {"image": "apple"}}
    assert told(await router.run(request(apples, big, inputs={}))) == [("big", 0, "png:upscale(generate(an apple))")]

    both = await router.run(request({**apples, "output": {"format": "png"}}, big, inputs={}, intermediates=True))
    encoded = [("apple", i, f"png:convert(generate(an apple){f'#{i}' if i else ''})") for i in range(3)]
    assert sorted(told(both)) == [*encoded, ("big", 0, "png:upscale(generate(an apple))")]
    timings = next(event.finished.timings for event in both if event.step == "apple" and event.HasField("finished"))
    assert [timing.stage for timing in timings] == ["convert"]


async def test_several_large_pictures_are_a_blob_each(router: Any) -> None:
    apples = {"name": "apple", "generate": {"prompt": "an apple", "options": {"imageCount": 2}}}
    events = await router.run(request(apples, inputs={}, inline_limit_bytes=0))
    blob_ids = [event.result.image.blob_id for event in events if event.HasField("result")]
    assert len(set(blob_ids)) == 2
    assert all(blob_ids)


async def test_what_pictures_were_made_from_is_passed_on(router: Any, fake: Any) -> None:
    async def script(call: Any) -> Any:
        yield call.result()
        yield "finished", progress_pb2.Finished(seed=7, model="tiny", parameters={"prompt": "an apple"})

    fake.script("generate", script)
    events = await router.run(request({"name": "apple", "generate": {"prompt": "an apple"}}, inputs={}))
    finished_event = events[-2].finished
    assert (finished_event.seed, dict(finished_event.parameters)) == (7, {"prompt": "an apple"})


async def test_intermediate_results_come_only_if_asked_for(router: Any) -> None:
    steps = (erase(), {"name": "big", "upscale": {"image": "fill"}})
    assert set(results(await router.run(request(*steps)))) == {"big"}
    assert set(results(await router.run(request(*steps, intermediates=True)))) == {"fill", "big"}


async def test_previews_come_only_if_asked_for_and_keep_only_the_latest_picture(router: Any, fake: Any) -> None:
    async def script(call: Any) -> Any:
        for step in (1, 2, 3):
            _, result = call.result()
            yield "preview", progress_pb2.Preview(image=result.image, step=step)
        yield call.result()
        yield finished()

    fake.script("inpaint", script)
    assert "preview" not in kinds(await router.run(request(erase())))
    events = await router.run(request(erase(), previews=True))
    assert [call.request.previews for call in fake.calls] == [False, True]
    run_id = events[0].accepted.run_id
    again = [e.event async for e in router.stub.WatchRun(router_pb2.WatchRunRequest(run_id=run_id))]
    previews = [event.preview for event in again if event.HasField("preview")]
    assert [preview.step for preview in previews] == [1, 2, 3]
    assert [preview.HasField("image") for preview in previews] == [False, False, True]


async def test_the_latest_preview_of_each_picture_is_kept(router: Any, fake: Any) -> None:
    async def script(call: Any) -> Any:
        picture = call.result()[1].image
        for step, index in ((1, 0), (1, 1), (2, 0), (2, 1), (3, 1)):
            yield "preview", progress_pb2.Preview(image=picture, step=step, image_index=index)
        yield call.result()
        yield finished()

    fake.script("generate", script)
    asked = request({"name": "apple", "generate": {"prompt": "an apple"}}, inputs={}, previews=True)
    run_id = (await router.run(asked))[0].accepted.run_id
    again = [e.event async for e in router.stub.WatchRun(router_pb2.WatchRunRequest(run_id=run_id))]
    previews = [event.preview for event in again if event.HasField("preview")]
    assert [(preview.step, preview.image_index) for preview in previews] == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 1)]
    assert [preview.HasField("image") for preview in previews] == [False, False, True, False, True]


def test_pictures_of_earlier_previews_take_no_memory() -> None:
    journal, data = Journal(), bytes(1 << 20)
    before = resident_bytes()
    for step in range(200):
        journal.append("fill", "preview", progress_pb2.Preview(image=images_pb2.Image(encoded=data), step=step))
    assert resident_bytes() - before < 20 << 20
    assert journal.bytes_used < 2 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_a_stage_of_any_number_of_steps_makes_few_events(router: Any, fake: Any) -> None:
    async def script(call: Any) -> Any:
        for stage in ("coarse", "fine"):
            for step in range(5001):
                yield "progress", progress_pb2.Progress(stage=stage, step=step, step_count=5000)
        yield call.result()
        yield finished()

    fake.script("inpaint", script)
    told = [event.progress for event in await router.run(request(erase())) if event.HasField("progress")]
    assert 100 < len(told) < 300
    assert [(p.stage, p.step) for p in told if p.step in (0, 5000)] == [
        ("coarse", 0),
        ("coarse", 5000),
        ("fine", 0),
        ("fine", 5000),
    ]


async def test_a_run_of_many_steps_does_not_fill_a_servers_queue(router: Any, fake: Any) -> None:
    at_work, most = 0, 0

    async def script(call: Any) -> Any:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.02)
        at_work -= 1
        yield call.result()
        yield finished()

    fake.script("inpaint", script)
    events = await router.run(request(*(erase(f"s{i}") for i in range(64)), intermediates=True))
    assert len(results(events)) == 64
    assert most == AT_ONCE


async def test_the_log_of_a_run_carries_its_id(router: Any, caplog: Any) -> None:
    ids: list[tuple[str, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ids.append((record.getMessage(), logs.run_id.get()))

    keep = Keep()
    with caplog.at_level(logging.INFO, logger="limner"):
        logging.getLogger("limner").addHandler(keep)
        try:
            events = await router.run(request(erase()))
            await until(lambda: _true(any("RouterService/Run OK" in message for message, _ in ids)))
        finally:
            logging.getLogger("limner").removeHandler(keep)
    run_id = events[0].accepted.run_id
    assert {known for message, known in ids if message.startswith(("run finished", "limner.v1.RouterService/Run"))} == {
        run_id
    }


async def test_calls_carry_the_run_and_the_step(router: Any, fake: Any) -> None:
    events = await router.run(request(erase()))
    assert fake.calls[0].metadata["limner-run-id"] == events[0].accepted.run_id
    assert fake.calls[0].metadata["limner-step"] == "fill"


async def test_large_results_come_as_blobs_and_can_be_inputs_again(router: Any) -> None:
    events = await router.run(request(erase(), inline_limit_bytes=0))
    blob_id = next(event.result.image.blob_id for event in events if event.HasField("result"))
    again = request(erase())
    again.inputs["source"].blob_id = blob_id
    assert results(await router.run(again)) == {"fill": "png:inpaint(png:inpaint(photo,hole),hole)"}


# --- watching


async def watch(router: Any, run_id: str, after_sequence: int = 0) -> list[router_pb2.RunEvent]:
    call = router.stub.WatchRun(router_pb2.WatchRunRequest(run_id=run_id, after_sequence=after_sequence))
    return [response.event async for response in call]


async def test_watching_from_any_event_on_loses_none_and_repeats_none(router: Any) -> None:
    events = await router.run(request(erase("a"), erase("b")))
    for number in range(len(events) + 1):
        assert await watch(router, events[0].accepted.run_id, number) == events[number:]


async def test_a_broken_stream_is_resumed_while_the_run_goes_on(router: Any, fake: Any) -> None:
    async def script(call: Any) -> Any:
        for step in range(30):
            yield "progress", progress_pb2.Progress(stage="fill", step=step, step_count=30)
            await asyncio.sleep(0.01)
        yield call.result()
        yield finished()

    fake.script("inpaint", script)
    asked = request(erase())
    asked.linger.seconds = 10
    seen = []
    call = router.stub.Run(asked)
    async for response in call:
        seen.append(response.event)
        if len(seen) == 5:
            call.cancel()
            break
    run_id = seen[0].accepted.run_id
    while not seen[-1].HasField("run_finished"):
        call = router.stub.WatchRun(router_pb2.WatchRunRequest(run_id=run_id, after_sequence=seen[-1].sequence))
        for _ in range(10):
            response = await call.read()
            if response is grpc.aio.EOF:
                break
            seen.append(response.event)
        call.cancel()
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    assert len(fake.calls) == 1
    assert [e.progress.step for e in seen if e.HasField("progress")] == list(range(30))


async def test_watching_a_run_that_failed_ends_with_its_status(router: Any, fake: Any) -> None:
    fake.script("inpaint", after(5))
    call = router.stub.Run(request(erase()))
    run_id = (await call.read()).event.accepted.run_id
    await router.stub.CancelRun(router_pb2.CancelRunRequest(run_id=run_id))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch(router, run_id, 2)
    assert isinstance(from_status(caught.value), Cancelled)


async def test_an_unknown_run_and_a_number_from_the_future_are_refused(router: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch(router, "no-such-run")
    assert isinstance(from_status(caught.value), RunNotFound)
    events = await router.run(request(erase()))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch(router, events[0].accepted.run_id, 1000)
    assert from_status(caught.value).violations[0].field == "after_sequence"


async def test_a_reader_that_stops_reading_holds_up_neither_the_run_nor_other_readers(router: Any, fake: Any) -> None:
    async def script(call: Any) -> Any:
        result = inpaint_pb2.InpaintResult()
        result.image.encoded = b"x" * 2_500_000
        yield "result", result
        yield finished()

    fake.script("inpaint", script)
    stalled = router.stub.Run(request(*(erase(f"step{i}") for i in range(8))))
    run_id = (await stalled.read()).event.accepted.run_id  # and nothing more
    events = await asyncio.wait_for(watch(router, run_id), 5)
    assert kinds(events)[-1] == "run_finished"
    assert [event.sequence for event in await rest(stalled)] == list(range(2, len(events) + 1))


async def rest(call: Any) -> list[router_pb2.RunEvent]:
    """What `read` has not taken yet."""
    events = []
    while (response := await call.read()) is not grpc.aio.EOF:
        events.append(response.event)
    return events


# --- joining


async def test_a_repeated_request_joins_the_first_and_gets_all_its_events(router: Any, fake: Any) -> None:
    fake.script("inpaint", after(0.2))
    first = asyncio.create_task(router.run(request(erase(), request_id="once")))
    await until(lambda: _true(fake.calls))
    second = await router.run(request(erase(), request_id="once"))
    assert await first == second
    third = await router.run(request(erase(), request_id="once"))
    assert third == second
    assert len(fake.calls) == 1


async def test_one_request_id_for_two_contents_is_a_conflict(router: Any) -> None:
    await router.run(request(erase(), request_id="once"))
    _, error = await router.fail(request(erase("other"), request_id="once"))
    assert isinstance(error, RequestIdConflict)


async def test_a_request_whose_run_was_cancelled_is_done_anew(router: Any, fake: Any) -> None:
    fake.script("inpaint", after(0.2))
    call = router.stub.Run(request(erase(), request_id="once"))
    await call.read()
    await until(lambda: _true(fake.calls))
    call.cancel()
    await fake.calls[0].over.wait()
    events = await router.run(request(erase(), request_id="once"))
    assert kinds(events)[-1] == "run_finished"
    assert len(fake.calls) == 2


async def test_a_long_request_id_and_a_linger_out_of_range_are_refused(router: Any) -> None:
    _, error = await router.fail(request(erase(), request_id="x" * 129))
    assert error.violations[0].field == "request_id"
    asked = request(erase())
    asked.linger.seconds = 3601
    _, error = await router.fail(asked)
    assert error.violations[0].field == "linger"


# --- cancelling


async def started(router: Any, fake: Any, asked: Any, **options: Any) -> tuple[Any, str]:
    """A stream whose step is at work at the server, and its run's id."""
    call = router.stub.Run(asked, **options)
    run_id = (await call.read()).event.accepted.run_id
    while not (await call.read()).event.HasField("started"):
        pass
    return call, run_id


async def test_cancel_run_reaches_the_server_within_half_a_second(router: Any, fake: Any) -> None:
    fake.script("inpaint", after(30))
    call, run_id = await started(router, fake, request(erase()))
    began = time.monotonic()
    answer = await router.stub.CancelRun(router_pb2.CancelRunRequest(run_id=run_id))
    await asyncio.wait_for(fake.calls[0].over.wait(), 2)
    assert fake.calls[0].ended - began < 0.5
    assert fake.calls[0].cancelled
    assert answer.cancelled
    response = await call.read()
    assert response.event.HasField("run_failed")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert response.event.run_failed.error.code == grpc.StatusCode.CANCELLED.value[0]
    again = await router.stub.CancelRun(router_pb2.CancelRunRequest(run_id=run_id))
    assert not again.cancelled


async def test_cancelling_a_run_that_ends_at_that_moment_tells_what_became_of_it() -> None:
    run = Run(detached=False, linger=0, remaining=None)
    task = asyncio.create_task(asyncio.sleep(0))
    run.start(task)
    task.add_done_callback(lambda _: run.end(None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert task.done()
    assert not run.journal.ended  # it is done, and that is not told yet
    assert not await run.cancel(Cancelled("too late"))
    assert run.journal.ended
    assert run.joinable


async def test_a_client_that_drops_cancels_the_run_at_the_server(router: Any, fake: Any) -> None:
    fake.script("inpaint", after(30))
    call, _ = await started(router, fake, request(erase()))
    began = time.monotonic()
    call.cancel()
    await asyncio.wait_for(fake.calls[0].over.wait(), 2)
    assert fake.calls[0].ended - began < 0.5
    await until(lambda: _no_active(router))


async def test_the_run_goes_on_while_another_reader_is_left(router: Any, fake: Any) -> None:
    fake.script("inpaint", after(0.3))
    call, run_id = await started(router, fake, request(erase()))
    watching = asyncio.create_task(watch(router, run_id))
    await asyncio.sleep(0.05)
    call.cancel()
    assert kinds(await watching)[-1] == "run_finished"


async def test_a_deadline_reaches_the_server_and_ends_the_run_with_the_steps_name(router: Any, fake: Any) -> None:
    fake.script("inpaint", after(30))
    began = time.monotonic()
    events, error = await router.fail(request(erase()), timeout=0.6)
    assert time.monotonic() - began < 0.8
    assert 0.3 < fake.calls[0].remaining < 0.55
    assert isinstance(error, DeadlineExceeded)
    assert error.metadata.get("step") == "fill"
    assert "during step 'fill', while the device was at work on it" in error.message
    assert kinds(events)[-1] == "run_failed"


async def test_each_step_gets_what_is_left_of_the_deadline(router: Any, fake: Any) -> None:
    fake.script("inpaint", after(0.3))
    await router.run(request(erase(), {"name": "big", "upscale": {"image": "fill"}}), timeout=5)
    first, second = fake.calls
    assert first.remaining - second.remaining == pytest.approx(0.3, abs=0.1)


async def test_a_step_that_the_deadline_leaves_no_time_for_is_not_begun(routers: Any, fake: Any) -> None:
    router = await routers(inpaint=[fake.address], postprocess=[fake.address], deadline_margin=0.6)
    fake.script("inpaint", after(0.3))
    _, error = await router.fail(request(erase(), {"name": "big", "upscale": {"image": "fill"}}), timeout=0.8)
    assert isinstance(error, DeadlineExceeded)
    assert not fake.called("upscale")


async def test_a_detached_run_goes_on_when_nobody_reads(router: Any, fake: Any) -> None:
    fake.script("inpaint", after(0.3))
    call, run_id = await started(router, fake, request(erase(), detached=True), timeout=0.2)
    with pytest.raises(grpc.aio.AioRpcError):
        await rest(call)
    assert fake.calls[0].remaining is None
    assert kinds(await watch(router, run_id))[-1] == "run_finished"


async def test_a_run_that_lingers_is_cancelled_when_nobody_comes_back(router: Any, fake: Any) -> None:
    fake.script("inpaint", after(30))
    asked = request(erase())
    asked.linger.FromMilliseconds(300)
    call, _ = await started(router, fake, asked)
    call.cancel()
    await asyncio.sleep(0.15)
    assert not fake.calls[0].cancelled
    await asyncio.wait_for(fake.calls[0].over.wait(), 2)
    assert fake.calls[0].cancelled


async def test_the_first_failure_cancels_the_other_steps_and_is_the_one_reported(router: Any, fake: Any) -> None:
    async def slow_then_bad(call: Any) -> Any:
        await asyncio.sleep(0.1)
        raise BadMask("the mask selects nothing", violations=[FieldViolation("mask", "selects nothing")])
        yield

    fake.script("inpaint", slow_then_bad)
    fake.script("upscale", after(30))
    events, error = await router.fail(request(erase(), {"name": "big", "upscale": {}}))
    assert isinstance(error, BadMask)
    assert error.metadata["step"] == "fill"
    assert error.violations[0].field == "inputs[hole]"
    assert kinds(events)[-1] == "run_failed"
    await asyncio.wait_for(fake.called("upscale")[0].over.wait(), 2)
    assert fake.called("upscale")[0].cancelled


# --- limits


async def test_more_runs_than_allowed_are_refused_before_headers_with_pushback(routers: Any, fake: Any) -> None:
    router = await routers(inpaint=[fake.address], max_runs=1)
    fake.script("inpaint", after(0.3))
    call, _ = await started(router, fake, request(erase()))
    refused = router.stub.Run(request(erase()))
    assert not await refused.initial_metadata()
    assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(await refused.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    assert isinstance((await router.fail(request(erase())))[1], Overloaded)
    await rest(call)
    await router.run(request(erase()))


async def test_ended_runs_are_forgotten_by_age_and_by_size(routers: Any, fake: Any) -> None:
    router = await routers(inpaint=[fake.address], run_retention_count=2)
    ids = [(await router.run(request(erase())))[0].accepted.run_id for _ in range(3)]
    with pytest.raises(grpc.aio.AioRpcError):
        await watch(router, ids[0])
    await watch(router, ids[1])


@pytest.mark.parametrize("script", [at_once, failing(BadMask("the mask selects nothing"))])
async def test_a_run_that_ended_lets_its_pictures_go_without_the_garbage_collector(
    fake: Any, tmp_path: Path, script: Any
) -> None:
    fake.script("inpaint", script)
    pool = Pool({"inpaint": [fake.address]}, PoolSettings())
    await pool.start()
    runs = Runs(RouterConfig(), pool, BlobStore(tmp_path, quota_bytes=1000, max_age=10, upload_max_age=10))
    asked = request(erase())
    references = sys.getrefcount(asked)
    gc.disable()
    try:
        run = await runs.start(asked, None)
        with contextlib.suppress(BadMask):
            async for _ in runs.read(run):
                pass
        await asyncio.sleep(0.05)
        assert sys.getrefcount(asked) == references
    finally:
        gc.enable()
        await pool.close()


async def test_a_run_that_was_cancelled_lets_its_pictures_go_without_the_garbage_collector(
    fake: Any, tmp_path: Path
) -> None:
    fake.script("inpaint", after(30))
    pool = Pool({"inpaint": [fake.address]}, PoolSettings())
    await pool.start()
    runs = Runs(RouterConfig(), pool, BlobStore(tmp_path, quota_bytes=1000, max_age=10, upload_max_age=10))
    asked = request(erase())
    references = sys.getrefcount(asked)
    gc.disable()
    try:
        run = await runs.start(asked, None)
        await until(lambda: _true(fake.calls))
        assert await run.cancel(Cancelled("no more"))
        await asyncio.sleep(0.05)
        assert sys.getrefcount(asked) == references
    finally:
        gc.enable()
        await pool.close()


async def test_an_internal_error_says_one_id_in_the_event_and_the_status(router: Any, monkeypatch: Any) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("limner.router.execution.message_of", broken)
    events, error = await router.fail(request(erase()))
    assert error.reason == "INTERNAL"
    assert error.metadata["error_id"] in events[-1].run_failed.error.message


async def _true(value: object) -> bool:
    return bool(value)


async def _no_active(router: Any) -> bool:
    status = await router.status()
    return not status.active_run_count and not any(server.active_call_count for server in status.servers)
