"""The client against a router that is real on the wire and made up behind it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2
from opentelemetry import trace

from limner.client import (
    AsyncClient,
    Cancelled,
    Client,
    Image,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestFailed,
    TimedOut,
    Unavailable,
    jobs,
)
from limner.client.making import generate_options, making_of
from limner.v1 import inpaint_pb2, models_pb2, router_pb2

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def client(router):
    with Client(router.address, timeout=20) as client:
        yield client


def kinds(events):
    return [event.WhichOneof("event") for event in events]


def upscale_twice():
    return router_pb2.Pipeline(
        steps=[
            router_pb2.Step(name="first", upscale=router_pb2.UpscaleStep()),
            router_pb2.Step(name="second", upscale=router_pb2.UpscaleStep(image="first")),
        ]
    )


def test_a_run_gives_its_events_in_order_and_its_results(client):
    with client.run(upscale_twice(), {"source": PNG}, intermediates=True) as run:
        events = list(run)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert kinds(events)[0] == "accepted"
    assert kinds(events)[-1] == "run_finished"
    assert run.run_id == "run-1"
    assert {step: result.data for step, result in run.results.items()} == {
        "first": PNG + b"|first",
        "second": PNG + b"|first|second",
    }
    assert run.results["first"].kind == "image"
    assert set(run.seconds) == {"first", "second"}


@pytest.mark.parametrize("kind", ["path", "text path", "bytes", "memoryview", "file", "message"])
def test_a_picture_may_be_a_path_bytes_a_file_or_a_message(client, photo, kind):
    data = photo.read_bytes()
    source = {
        "path": photo,
        "text path": str(photo),
        "bytes": data,
        "memoryview": memoryview(data),
        "file": io.BytesIO(data),
        "message": Image(encoded=data),
    }[kind]
    assert client.upscale(source, 3) == data + b"|upscale"


def test_a_file_open_as_text_is_refused(client):
    with pytest.raises(TypeError, match="'rb'"):
        client.convert(io.StringIO("text"), "png")


def test_helpers_write_the_pipelines_they_say(client, router):
    assert client.erase(PNG, clicks=[(4, 5)], avoid=[(6, 7)], boxes=[(1, 2, 3, 4)]).endswith(b"|erase")
    pipeline = router.requests[-1].pipeline
    assert [step.name for step in pipeline.steps] == ["segment", "soften", "erase"]
    assert [(click.x_px, click.y_px, click.label) for click in pipeline.steps[0].segment.options.clicks] == [
        (4, 5, 1),
        (6, 7, 2),
    ]
    grow, feather = pipeline.steps[1].mask.options.operations
    assert (grow.grow.radius_px, feather.feather.radius_px) == (jobs.FOUND_GROW_PX, jobs.FOUND_FEATHER_PX)
    assert pipeline.steps[2].inpaint.mask == "soften"

    client.erase(PNG, mask=PNG + b"mask", model="telea", strategy="crop", format="jpeg", quality=90)
    pipeline = router.requests[-1].pipeline
    assert [step.name for step in pipeline.steps] == ["erase"]
    assert pipeline.steps[0].inpaint.options.strategy == inpaint_pb2.INPAINT_STRATEGY_CROP
    assert pipeline.steps[0].output.format == "jpeg"
    assert router.requests[-1].inputs["mask"].encoded == PNG + b"mask"

    assert client.segment(PNG, clicks=[(1, 1)]).endswith(b"|segment")
    assert client.remove_background(PNG, mask=True).endswith(b"|remove-background")
    assert client.convert(PNG, "webp", bit_depth=8).endswith(b"|convert")


def test_erasing_needs_exactly_one_way_to_say_what(client):
    with pytest.raises(ValueError, match="by a mask, or by clicks"):
        client.erase(PNG)
    with pytest.raises(ValueError, match="by a mask, or by clicks"):
        client.erase(PNG, mask=PNG, clicks=[(1, 1)])
    with pytest.raises(ValueError, match="auto, original, resize, crop"):
        client.erase(PNG, mask=PNG, strategy="whole")


def test_pictures_are_made_from_text(client, router):
    made = client.generate("an apple", steps=4, count=3, seed=7, loras={"ink": 0.5}, skip_layers=(), step_cache=2)
    assert made.files == [router.png_of(f"an apple{number}") for number in ("", "#1", "#2")]
    assert made.data == made.files[0]
    assert made.seeds == [7, 8, 9]
    assert made.finished.parameters["step_count"] == "4"
    step = router.requests[-1].pipeline.steps[0].generate
    assert not router.requests[-1].inputs
    assert (step.prompt, step.options.step_count, step.options.image_count) == ("an apple", 4, 3)
    assert [(lora.name, lora.scale) for lora in step.options.loras] == [("ink", 0.5)]
    assert step.options.HasField("skip_layer_guidance")
    assert step.options.step_cache.interval == 2
    assert not step.options.HasField("guidance_scale")


def test_pictures_are_edited_where_a_mask_or_an_object_is_or_as_a_whole(client, router):
    client.edit(PNG, "a pear", clicks=[(4, 5)], guidance=5.5, strength=0.9)
    pipeline = router.requests[-1].pipeline
    assert [step.name for step in pipeline.steps] == ["segment", "soften", "edit"]
    assert (pipeline.steps[2].edit.mask, pipeline.steps[2].edit.options.strength) == ("soften", 0.9)
    assert pipeline.steps[2].edit.options.generate.guidance_scale == 5.5

    client.edit(PNG, mask=PNG + b"mask", crop_margin=0)
    edit = router.requests[-1].pipeline.steps[0].edit
    assert (edit.mask, edit.prompt, edit.options.HasField("crop_margin_px")) == ("mask", "", True)

    client.edit(PNG, count=4)
    edit = router.requests[-1].pipeline.steps[0].edit
    assert (edit.mask, edit.options.generate.image_count) == ("", 4)
    with pytest.raises(ValueError, match="not both"):
        client.edit(PNG, mask=PNG, clicks=[(1, 1)])
    with pytest.raises(ValueError, match="go with a mask"):
        client.edit(PNG, grow=3)


def test_pictures_are_extended(client, router):
    client.outpaint(PNG, "a meadow", left=64, bottom=32, feather=8, model="tiny", format="webp")
    step = router.requests[-1].pipeline.steps[0]
    options = step.outpaint.options
    assert (options.left_px, options.top_px, options.right_px, options.bottom_px) == (64, 0, 0, 32)
    assert (options.feather_px, options.generate.model, step.output.format) == (8, "tiny", "webp")
    with pytest.raises(ValueError, match="left, top, right or bottom"):
        client.outpaint(PNG)


def test_what_cannot_be_said_of_making_is_refused(client, router):
    with pytest.raises(TypeError, match="unexpected argument 'step'; there are: model, "):
        client.generate("an apple", step=4)
    with pytest.raises(ValueError, match="steps can't be -4"):
        client.generate("an apple", steps=-4)
    assert not router.requests


def test_what_was_said_of_making_can_be_said_again():
    making = {
        "model": "tiny", "width": 64, "guidance": 4.5, "truncate": True, "step_cache": 3, "skip_layers": (7, 8),
        "loras": {"ink": 0.5, "oil": 1.0},
    }  # fmt: skip
    options = generate_options(making)
    assert generate_options(making_of(options)) == options
    assert making_of(generate_options({})) == {}


def test_models_are_loaded_and_unloaded(client, router):
    assert client.load_model("tiny").state == models_pb2.MODEL_STATE_LOADED
    assert client.unload_model("tiny").state == models_pb2.MODEL_STATE_INSTALLED
    assert router.loads == ["+tiny", "-tiny"]
    with pytest.raises(NotFound, match="no model of this name"):
        client.load_model("unknown")


def test_helpers_keep_their_names_and_signatures():
    import inspect

    assert Client.erase.__name__ == AsyncClient.erase.__name__ == "erase"
    assert "clicks" in (Client.erase.__doc__ or "")
    assert "feather" in inspect.signature(Client.erase).parameters
    assert "feather" in inspect.signature(AsyncClient.erase).parameters


def test_large_pictures_travel_as_blobs_in_pieces_both_ways(router):
    data = os.urandom((2 << 20) + 12345)
    with Client(router.address, inline_limit=1 << 20) as client:
        assert client.upscale(data) == data + b"|upscale"
        assert not router.requests[0].inputs["source"].encoded
        assert [len(piece.data) for piece in router.uploads] == [0, 1 << 20, 1 << 20, 12345]
        client.upscale(data)
    assert len(router.uploads) == 5, "what is there already is not sent again"


def test_a_broken_upload_goes_on_where_it_was(client, router):
    data = os.urandom(3 << 20)
    blob_id = hashlib.sha256(data).hexdigest()
    router.blobs[blob_id] = data[: 2 << 20]
    assert client.upload(data) == blob_id
    assert [piece.offset_bytes for piece in router.uploads] == [0, 2 << 20]
    assert client.download(blob_id) == data


def test_a_damaged_download_is_noticed(client, router):
    blob_id = hashlib.sha256(b"good").hexdigest()
    router.blobs[blob_id] = b"bad"
    with pytest.raises(RequestFailed, match="damaged"):
        client.download(blob_id)


def test_a_missing_blob_is_told(client):
    with pytest.raises(NotFound, match="BLOB_NOT_FOUND: the blob is gone"):
        client.download("0" * 64)


def test_a_cut_connection_loses_and_repeats_no_event(router, wire):
    router.gate.clear()
    with Client(wire.address) as client, client.run(upscale_twice(), {"source": PNG}) as run:
        events = []
        for event in run:
            events.append(event)
            if event.WhichOneof("event") == "progress" and not router.gate.is_set():
                wire.cut()
                router.gate.set()
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert kinds(events)[-1] == "run_finished"
    assert len(router.requests) == 1, "the run was watched, not begun again"
    assert router.watches[0].run_id == run.run_id
    assert router.watches[0].after_sequence > 0
    assert router.requests[0].linger.seconds == 15
    assert run.results["second"].data == PNG + b"|first|second"


def test_a_connection_cut_before_any_event_joins_the_first_request(router, wire):
    router.answering.clear()

    def cut_once_asked():
        while not router.requests:
            time.sleep(0.01)
        wire.cut()
        router.answering.set()

    threading.Thread(target=cut_once_asked).start()
    with Client(wire.address) as client:
        assert client.upscale(PNG) == PNG + b"|upscale"
    assert len(router.requests) > 1
    assert {request.request_id for request in router.requests} == {router.requests[0].request_id}
    assert len(router.runs) == 1


def test_a_router_that_stays_away_ends_the_wait(router, wire):
    router.gate.clear()
    with Client(wire.address) as client, client.run(upscale_twice(), {"source": PNG}, linger=0.5) as run:
        next(run)
        wire.broken = True
        wire.cut()
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"no answer from 127\.0\.0\.1"):
            run.wait()
    assert time.monotonic() - began < 10


def test_nobody_at_the_address_is_told_with_the_mend():
    with Client("127.0.0.1:1") as client, pytest.raises(Unavailable, match="limner up"):
        client.upscale(PNG)


def test_leaving_the_block_cancels_the_run(client, router):
    router.gate.clear()
    with client.run(upscale_twice(), {"source": PNG}) as run:
        next(run)
    assert router.cancelled == [run.run_id]


async def test_leaving_before_the_first_event_cancels_too(router):
    router.gate.clear()
    router.answering.clear()
    async with AsyncClient(router.address) as client, client.run(upscale_twice(), {"source": PNG}) as run:
        waiting = asyncio.ensure_future(anext(run))
        while not router.requests:  # noqa: ASYNC110  (no event tells it: that is the case here)
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        router.answering.set()
    assert router.cancelled == ["run-1"]


def test_a_detached_run_goes_on_without_its_reader(client, router):
    with client.run(upscale_twice(), {"source": PNG}, detached=True) as run:
        next(run)
    assert router.cancelled == []
    assert client.watch(run.run_id, 1).wait()["second"] == PNG + b"|first|second"


def test_cancelling_from_another_thread_ends_the_run(client, router):
    router.gate.clear()
    run = client.run(upscale_twice(), {"source": PNG})
    next(run)
    threading.Timer(0.1, run.cancel).start()
    with pytest.raises(Cancelled):
        run.wait()


def test_closing_the_client_ends_what_it_does(router):
    router.gate.clear()
    client = Client(router.address)
    run = client.run(upscale_twice(), {"source": PNG})
    next(run)
    threading.Timer(0.1, client.close).start()
    with pytest.raises(Cancelled, match="the client was closed"):
        run.wait()


def test_a_failed_step_gives_its_event_and_then_its_error(client, router):
    violation = error_details_pb2.BadRequest.FieldViolation(field="steps[0].scale", description="is 99; give 0.1 to 16")
    router.failures["first"] = router.a_status(
        code_pb2.INVALID_ARGUMENT,
        "the scale is out of range",
        "BAD_ARGUMENT",
        metadata={"step": "first"},
        details=[error_details_pb2.BadRequest(field_violations=[violation])],
    )
    run = client.run(upscale_twice(), {"source": PNG})
    while next(run).WhichOneof("event") != "run_failed":
        pass
    with pytest.raises(InvalidRequest) as caught:
        next(run)
    failure = caught.value
    assert (failure.reason, failure.step, failure.code) == ("BAD_ARGUMENT", "first", grpc.StatusCode.INVALID_ARGUMENT)
    assert str(failure) == (
        "BAD_ARGUMENT in step 'first': the scale is out of range\n  steps[0].scale: is 99; give 0.1 to 16"
    )


def test_overload_says_when_to_come_again(client, router):
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    router.refusals.append(
        router.a_status(code_pb2.RESOURCE_EXHAUSTED, "the queue is full", "OVERLOADED", details=[retry])
    )
    with pytest.raises(Overloaded, match=r"try again in 2\.5 s") as caught:
        client.upscale(PNG)
    assert caught.value.retry_after == 2.5


def test_a_missing_model_server_is_no_lost_connection(client, router):
    for _ in range(9):
        router.refusals.append(router.a_status(code_pb2.UNAVAILABLE, "no healthy inpaint server", "SERVER_UNAVAILABLE"))
    with pytest.raises(Unavailable, match="SERVER_UNAVAILABLE: no healthy inpaint server"):
        client.upscale(PNG)


def test_a_short_unavailability_is_tried_again_by_the_channel_even_for_large_requests(client, router):
    router.refusals.append(router.a_status(code_pb2.UNAVAILABLE, "not yet", "SERVER_UNAVAILABLE"))
    data = os.urandom(2 << 20)  # over gRPC's own retry buffer of 256 KiB
    assert client.upscale(data) == data + b"|upscale"
    assert len(router.requests) == 2


def test_a_timeout_ends_the_run_and_cancels_it(router):
    router.gate.clear()
    with Client(router.address, timeout=0.3) as client, pytest.raises(TimedOut):
        client.upscale(PNG)
    assert router.cancelled == ["run-1"]


def test_the_callers_span_travels_as_traceparent(client, router):
    context = trace.SpanContext(0x1234, 0x5678, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        client.status()
        client.upscale(PNG)
    for metadata in router.metadata:
        assert metadata["traceparent"] == f"00-{0x1234:032x}-{0x5678:016x}-01"


def test_models_and_status_come_as_messages(client):
    assert [model.name for model in client.models()] == ["telea", "grabcut"]
    assert [model.name for model in client.models("segment")] == ["grabcut"]
    assert client.status().servers[0].kind == "inpaint"


def test_many_threads_share_one_client(client):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(client.upscale(PNG))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [PNG + b"|upscale"] * 8


async def test_the_asynchronous_client_does_the_same(router):
    async with AsyncClient(router.address) as client:
        first, second = await asyncio.gather(client.upscale(PNG), client.erase(PNG, mask=PNG))
        assert (first, second) == (PNG + b"|upscale", PNG + b"|erase")
        async with client.run(upscale_twice(), {"source": PNG}) as run:
            events = [event async for event in run]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


def test_an_interrupt_cancels_the_run_and_the_program_ends_quietly(router):
    router.gate.clear()
    program = (
        "import sys; from limner.client import Client\n"
        "try: Client(sys.argv[1]).upscale(b'x')\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, router.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not any(run.events for run in list(router.runs.values())):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10) == ("interrupted\n", "")
    assert router.cancelled == ["run-1"]
