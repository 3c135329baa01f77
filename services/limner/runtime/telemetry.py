"""Traces and metrics, through the standard OTEL_* variables; off unless one of them asks for more.

Only OpenTelemetry's API is imported here: it does nothing but hand the caller's trace on until `set_up` finds an
exporter asked for, and only then is the SDK loaded. Spans of one call, from the client's on: the RPC, `queue`,
`decode`, `device` with the model's own stages in it, `encode`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from limner.core.errors import DeadlineExceeded
from limner.runtime import logs
from limner.runtime.config import ConfigError

if TYPE_CHECKING:
    from limner.runtime.device import Device

RUN_ID_KEY = "limner-run-id"
STEP_KEY = "limner-step"

tracer = trace.get_tracer("limner")
_meter = metrics.get_meter("limner")
_SECONDS = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]
call_duration = _meter.create_histogram(
    "limner.call.duration",
    "s",
    "Wall-clock time of calls, by method and status",
    explicit_bucket_boundaries_advisory=_SECONDS,
)
refused = _meter.create_counter("limner.refused", "{call}", "Calls refused before they began, by reason")
calls_at_once = _meter.create_histogram(
    "limner.device.calls_at_once",
    "{call}",
    "Calls that a device did in one turn; of turns that calls join and leave, how many were there as one joined",
    explicit_bucket_boundaries_advisory=[1, 2, 3, 4, 8, 16],
)
step_duration = _meter.create_histogram(
    "limner.diffusion.step.duration",
    "s",
    "Wall-clock time of a diffusion model's evaluations, whatever the number of pictures in them, by model",
    explicit_bucket_boundaries_advisory=_SECONDS,
)
pictures_at_once = _meter.create_histogram(
    "limner.diffusion.pictures_at_once",
    "{picture}",
    "Pictures that a diffusion model advanced in one evaluation, by model",
    explicit_bucket_boundaries_advisory=[1, 2, 3, 4, 8, 16],
)
pictures_active = _meter.create_up_down_counter(
    "limner.diffusion.pictures_active", "{picture}", "Pictures under way, by model"
)

run_duration = _meter.create_histogram(
    "limner.run.duration",
    "s",
    "Wall-clock time of the router's runs, by outcome: OK or the error's reason",
    explicit_bucket_boundaries_advisory=_SECONDS,
)
step_retries = _meter.create_counter(
    "limner.step.retries", "{call}", "Steps that went to another server as theirs went away, by kind of server"
)

_propagator = TraceContextTextMapPropagator()
_devices: weakref.WeakSet[Device] = weakref.WeakSet()
_log = logging.getLogger("limner.telemetry")


def watch_device(device: Device) -> None:
    """Include a device in the gauges."""
    _devices.add(device)


def forget_device(device: Device) -> None:
    """Leave a device out of the gauges again."""
    _devices.discard(device)


def _observed(value: Callable[[Device], int]) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
    """Return a gauge's callback; devices of one name are added up, as a gauge takes one value for it."""

    def observe(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        sums: Counter[str] = Counter()
        for device in _devices:
            sums[device.name] += value(device)
        return [metrics.Observation(total, {"device": name}) for name, total in sums.items()]

    return observe


_meter.create_observable_gauge(
    "limner.queue.length", [_observed(lambda device: device.waiting)], "{call}", "Calls that wait for a device"
)
_meter.create_observable_gauge(
    "limner.device.busy", [_observed(lambda device: int(device.busy))], "1", "1 while a device works"
)


def extract(metadata: Mapping[str, str]) -> otel_context.Context:
    """Return the trace context that a call's metadata carries."""
    return _propagator.extract(metadata, otel_context.Context())


@contextmanager
def server_span(name: str, metadata: Mapping[str, str]) -> Iterator[trace.Span]:
    """Span a call that came in with `metadata`; `name` is `limner.v1.InpaintService/Inpaint`."""
    service, _, method = name.rpartition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    with tracer.start_as_current_span(
        name,
        extract(metadata),
        trace.SpanKind.SERVER,
        attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def current_span(name: str, attributes: Mapping[str, str]) -> trace.Span:
    """Return a span that is the current one for all that is called in this context from now on, until it is ended."""
    span = tracer.start_span(name, attributes=attributes)
    otel_context.attach(trace.set_span_in_context(span))
    return span


def call_ended(span: trace.Span, name: str, status: str, seconds: float) -> None:
    """Record how a call ended; `status` is the name of its gRPC code."""
    span.set_attribute("rpc.grpc.status_code", status)
    if status != "OK":
        span.set_status(trace.StatusCode.ERROR, status)
    call_duration.record(seconds, {"method": name, "status": status})


def outgoing(
    *,
    run_id: str = "",
    step: str = "",
    remaining: float | None = None,
    margin: float = 0.1,
) -> tuple[tuple[tuple[str, str], ...], float | None]:
    """Return `metadata` and `timeout` for a call to another server: the current trace, the run and step, and what is
    left of the deadline less a margin in which the answer can still be passed on.

        metadata, timeout = outgoing(step="erase", remaining=context.time_remaining())
        stub.Inpaint(request, metadata=metadata, timeout=timeout)

    `run_id` and `step` default to those of the current call. Deadlines do not propagate by themselves, so `remaining`
    is asked for; None is no deadline. Raises DeadlineExceeded if the margin alone is more than what is left.
    """
    if remaining is not None and remaining <= margin:
        raise DeadlineExceeded(f"{max(remaining, 0):.3f} s are left, too few for another call; allow more time")
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    carrier |= {RUN_ID_KEY: run_id or logs.run_id.get(), STEP_KEY: step or logs.step.get()}
    metadata = tuple((key, value) for key, value in carrier.items() if value)
    return metadata, None if remaining is None else remaining - margin


def set_up(service: str, environment: Mapping[str, str] | None = None) -> Callable[[float], None]:
    """Install what OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER (`none`, `console`, `otlp`) ask for, and return a
    function that sends what is left, for so many seconds at most, and ends it.

    Both default to `otlp` if an OTEL_EXPORTER_OTLP_ENDPOINT is set, else to `none`. OTEL_SERVICE_NAME defaults to
    `limner-<service>`. Raises ConfigError for an exporter that there isn't.
    """
    environment = os.environ if environment is None else environment
    traces = _exporter_name(environment, "TRACES")
    measures = _exporter_name(environment, "METRICS")
    if traces == measures == "none":
        return lambda within_s: None
    from opentelemetry.sdk.resources import Resource  # here, as it costs start-up time

    name = environment.get("OTEL_SERVICE_NAME", f"limner-{service}")
    resource = Resource.create({"service.name": name})
    ends: list[Callable[[], None]] = []
    if traces != "none":
        ends.append(_set_up_traces(traces, resource))
    if measures != "none":
        ends.append(_set_up_metrics(measures, resource))
    _log.info("telemetry of %s: traces to %s, metrics to %s", name, traces, measures)

    def end(within_s: float) -> None:
        # Exporters try for a long time to reach a collector that is gone, and a server must stop all the same.
        until = time.monotonic() + within_s
        threads = [threading.Thread(target=each, daemon=True) for each in ends]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0))

    return end


def _exporter_name(environment: Mapping[str, str], signal: str) -> str:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return "none"
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    default = "otlp" if any(environment.get(endpoint) for endpoint in endpoints) else "none"
    variable = f"OTEL_{signal}_EXPORTER"
    name = environment.get(variable) or default
    if name not in ("none", "console", "otlp"):
        raise ConfigError(f"{variable}: is {name!r}; give none, console or otlp")
    return name


def _set_up_traces(name: str, resource: Any) -> Callable[[], None]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    exporter: SpanExporter
    if name == "console":
        exporter = ConsoleSpanExporter()
    else:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _set_up_metrics(name: str, resource: Any) -> Callable[[], None]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricExporter, PeriodicExportingMetricReader

    exporter: MetricExporter
    if name == "console":
        exporter = ConsoleMetricExporter()
    else:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        exporter = OTLPMetricExporter()
    provider = MeterProvider([PeriodicExportingMetricReader(exporter)], resource=resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return provider.shutdown
