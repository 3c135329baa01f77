"""Traces and metrics of calls, with exporters in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading

import grpc
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from limner.core.errors import BadImage, DeadlineExceeded, UnknownModel
from limner.runtime import logs, telemetry
from limner.runtime.call import Together
from limner.runtime.config import ConfigError, ServerConfig
from limner.runtime.server import start
from limner.v1.models_pb2 import GetModelRequest, ListModelsRequest, ListModelsResponse
from limner.v1.models_pb2_grpc import ModelServiceServicer, ModelServiceStub, add_ModelServiceServicer_to_server


@pytest.fixture(scope="module")
def memory():
    """OpenTelemetry takes one provider a process, so this one stays."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
    return exporter, reader


@pytest.fixture
def spans(memory):
    memory[0].clear()
    return memory[0].get_finished_spans


def points(reader):
    data = reader.get_metrics_data()
    return {
        metric.name: [(dict(point.attributes), point) for point in metric.data.data_points]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def finish(call):
    return [response async for response in call]


async def test_from_the_client_to_the_device_it_is_one_trace(house, spans):
    with trace.get_tracer("client").start_as_current_span("client"):
        metadata, timeout = telemetry.outgoing(run_id="run-7", step="erase", remaining=10.0)
        await finish(house.call(metadata=metadata, timeout=timeout))
    by_name = {span.name: span for span in spans()}
    assert {"client", "limner.v1.InpaintService/Inpaint", "queue", "decode", "device", "reverse", "encode"} <= set(
        by_name
    )
    assert len({span.context.trace_id for span in by_name.values()}) == 1
    parents = {name: span.parent and span.parent.span_id for name, span in by_name.items()}
    rpc = by_name["limner.v1.InpaintService/Inpaint"]
    assert parents[rpc.name] == by_name["client"].context.span_id
    assert {parents[name] for name in ("queue", "decode", "device", "encode")} == {rpc.context.span_id}
    assert parents["reverse"] == by_name["device"].context.span_id
    assert rpc.attributes["rpc.grpc.status_code"] == "OK"


async def test_the_device_knows_run_step_and_trace_for_its_logs(house, model, spans):
    seen = []
    model.before_step = lambda job, step: seen.append(logs.current())
    with trace.get_tracer("client").start_as_current_span("client") as client:
        metadata, _ = telemetry.outgoing(run_id="run-7", step="erase")
        await finish(house.call(metadata=metadata))
    expected = {"run": "run-7", "step": "erase", "trace": trace.format_trace_id(client.get_span_context().trace_id)}
    assert seen == [expected] * 3


async def test_calls_that_share_a_turn_have_a_trace_each_and_are_counted(house, model, memory, spans):
    turns = []

    def run(members):
        turns.append(len(members))
        for member in members:
            member.succeed(member.within(functools.partial(model._run, member.job, member.given)))

    alone = model.work
    together = Together(run, key=lambda data: "a", size=lambda data: 1, most=lambda data: 2)
    model.work = lambda request: dataclasses.replace(alone(request), run=together)
    go = threading.Event()
    model.before_step = lambda job, step: go.wait(5)
    calls = [asyncio.create_task(finish(house.call(b"0")))]
    await house.until(model.running.is_set)
    calls += [asyncio.create_task(finish(house.call(data))) for data in (b"1", b"2")]
    await house.until(lambda: sum(ticket._turn is not None for ticket in house.device._line) == 2)
    go.set()
    await asyncio.gather(*calls)
    assert turns == [1, 2]
    assert ({"device": "cpu"}, 2) in [
        (labels, point.max) for labels, point in points(memory[1])["limner.device.calls_at_once"]
    ]
    devices = {span.context.span_id: span for span in spans() if span.name == "device"}
    works = [span for span in spans() if span.name == "reverse"]
    assert len({span.context.trace_id for span in works}) == 3
    assert all(devices[span.parent.span_id].context.trace_id == span.context.trace_id for span in works)


async def test_run_and_step_are_handed_on_and_do_not_leak_into_other_calls(house, model):
    seen = []
    model.before_step = lambda job, step: seen.append(dict(telemetry.outgoing()[0]))
    await finish(house.call(metadata=(("limner-run-id", "a"), ("limner-step", "b"))))
    await finish(house.call())
    assert (seen[0]["limner-run-id"], seen[0]["limner-step"]) == ("a", "b")
    assert "limner-run-id" not in seen[-1]


async def test_failed_calls_are_errors_in_the_trace_and_counted_by_status(house, model, memory, spans):
    def refuse(request):
        raise BadImage("no", field="image")

    model.decode = refuse
    with pytest.raises(Exception, match="no"):
        await finish(house.call())
    rpc = next(span for span in spans() if span.name == "limner.v1.InpaintService/Inpaint")
    assert rpc.status.status_code is trace.StatusCode.ERROR
    assert rpc.attributes["rpc.grpc.status_code"] == "INVALID_ARGUMENT"
    labels = [attributes for attributes, _ in points(memory[1])["limner.call.duration"]]
    assert {"method": "limner.v1.InpaintService/Inpaint", "status": "INVALID_ARGUMENT"} in labels


async def test_queue_and_device_are_measured_and_refusals_counted(house, model, memory, spans):
    model.steps, model.step_s = 10_000, 0.005
    calls = [house.call() for _ in range(3)]
    for call in calls:
        await anext(aiter(call))
    await house.until(model.running.is_set)
    with pytest.raises(Exception, match="calls wait"):
        await finish(house.call())
    measured = points(memory[1])
    assert ({"device": "cpu"}, 2) in [(labels, point.value) for labels, point in measured["limner.queue.length"]]
    assert ({"device": "cpu"}, 1) in [(labels, point.value) for labels, point in measured["limner.device.busy"]]
    assert any(labels == {"reason": "OVERLOADED"} and point.value >= 1 for labels, point in measured["limner.refused"])
    for call in calls:
        call.cancel()


async def test_what_a_caller_makes_up_is_no_label(model, memory):
    async def build(server, config):
        with pytest.raises(grpc.aio.AioRpcError, match="still starting"):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                await channel.unary_unary("/made.up/Method")(b"")

    async with await start("inpaint", ServerConfig(), build):
        labels = [attributes["method"] for attributes, _ in points(memory[1])["limner.call.duration"]]
    assert "made.up/Method" not in labels


async def test_calls_that_only_look_are_not_in_the_log_at_its_usual_level(caplog):
    async def build(server, config):
        server.add(add_ModelServiceServicer_to_server, NoModels(), "limner.v1.ModelService")

    with caplog.at_level("INFO", "limner.calls"):
        async with (
            await start("inpaint", ServerConfig(), build) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            stub = ModelServiceStub(channel)
            await stub.ListModels(ListModelsRequest())
            assert not caplog.messages
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.GetModel(GetModelRequest(name="lama"))
    assert "limner.v1.ModelService/GetModel NOT_FOUND" in caplog.text


class NoModels(ModelServiceServicer):
    async def ListModels(self, request, context):
        return ListModelsResponse()

    async def GetModel(self, request, context):
        raise UnknownModel(request.name, available=[])


def test_a_call_gets_what_is_left_of_the_deadline_less_a_margin():
    assert telemetry.outgoing(remaining=3.0, margin=0.5)[1] == 2.5
    assert telemetry.outgoing()[1] is None
    with pytest.raises(DeadlineExceeded):
        telemetry.outgoing(remaining=0.05, margin=0.1)


def test_telemetry_is_off_unless_asked_for():
    assert telemetry._exporter_name({}, "TRACES") == "none"
    assert telemetry._exporter_name({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, "METRICS") == "otlp"
    assert telemetry._exporter_name({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, "METRICS") == "none"
    both = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_TRACES_EXPORTER": "none"}
    assert telemetry._exporter_name(both, "TRACES") == "none"
    assert (
        telemetry._exporter_name({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, "TRACES") == "none"
    )


def test_an_exporter_that_there_is_not_is_named():
    with pytest.raises(ConfigError, match="OTEL_TRACES_EXPORTER: is 'zipkin'; give none, console or otlp"):
        telemetry.set_up("inpaint", {"OTEL_TRACES_EXPORTER": "zipkin"})
