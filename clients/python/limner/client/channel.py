"""How a connection to the router is set up. Knows nothing of what is sent on it."""

from __future__ import annotations

import json

import grpc

MAX_MESSAGE_BYTES = 512 << 20  # what servers accept by default
# gRPC keeps a request until the answer begins, to send it again; requests over this sum are silently never retried.
RETRY_BUFFER_BYTES = 256 << 20

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.5},
}

OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A dead peer is noticed while a call waits for its next event. Servers permit a ping every 20 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # keepalive_timeout alone leaves a frozen router unnoticed
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 1),
    ("grpc.per_rpc_retry_buffer_size", RETRY_BUFFER_BYTES),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # After a break, look again quickly: a run lingers for seconds, not minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to `host:port`; to be called on the event loop that will use it."""
    return grpc.aio.insecure_channel(address, options=OPTIONS)


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """The caller's OpenTelemetry span as a `traceparent`, so that one trace runs from the client to the device."""
    from opentelemetry import trace

    if not trace.get_current_span().get_span_context().is_valid:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())
