"""One trace from the client through the router to the servers' devices, exported as OTEL_* says."""

from __future__ import annotations

import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from limner.client import LocalServers
from limner.v1 import router_pb2_grpc
from tests.e2e import scenes


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent: (service, name, parent id) by trace id."""

    def __init__(self) -> None:
        self.traces: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def Export(self, request, context):
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                self.traces[span.trace_id.hex()].append((service, span.name))
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_of_router_server_and_device_share_the_clients_trace() -> None:
    collector = Collector()
    exports = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, exports)
    port = exports.add_insecure_port("127.0.0.1:0")
    exports.start()
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    trace = "0af7651916cd43dd8448eb211c80319c"
    try:
        with (
            LocalServers(services=("router", "inpaint"), environment=environment) as servers,
            grpc.insecure_channel(servers.address("router")) as channel,
        ):
            metadata = [("traceparent", f"00-{trace}-b7ad6b7169203331-01")]
            assert list(router_pb2_grpc.RouterServiceStub(channel).Run(scenes.quick_fill(), metadata=metadata))
        until = time.monotonic() + 10
        while time.monotonic() < until and len({service for service, _ in collector.traces[trace]}) < 2:
            time.sleep(0.05)
    finally:
        exports.stop(None)
    names = collector.traces[trace]
    assert len({service for service, _ in names}) == 2, names
    spans = {name for _, name in names}
    assert {"queue", "decode", "encode"} <= spans, names
    assert any("Run" in name for name in spans)
    assert any("Inpaint" in name for name in spans)
