"""What stands around every call: refusal while the server starts or stops, the caller's trace and run, size limits,
errors to statuses, a log line and a measurement. Health, reflection and channelz pass untouched.

Streams are driven here and not by gRPC, which leaves a generator unclosed when its reader goes away.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from limner.core.errors import BadArgument, ImageTooLarge, LimnerError, Overloaded, ServerUnavailable, Unavailable
from limner.runtime import logs, status, telemetry

HEALTH = "/grpc.health."
NOT_THERE = "/(not there)"  # the name of methods that the server doesn't have, or not yet
DIAGNOSTICS = ("/grpc.reflection.", "/grpc.channelz.")

_log = logging.getLogger("limner.calls")

Context = Any  # grpc.aio.ServicerContext, whose type parameters say nothing here


class Gate(Protocol):
    """What the interceptor asks the server."""

    max_message_bytes: int

    def check_open(self, method: str) -> None:
        """Raise ServerUnavailable or Stopping if calls are not taken now."""

    def add_diagnostics(self) -> None:
        """Serve reflection and channelz from now on."""

    def hold(self) -> AbstractContextManager[None]:
        """Count as work that a stopping server waits for."""


class Interceptor(grpc.aio.ServerInterceptor):
    """Stands around every call of a server."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        method = details.method
        if method.startswith(DIAGNOSTICS):
            self._gate.add_diagnostics()
        handler = await continuation(details)
        if method.startswith((HEALTH, *DIAGNOSTICS)):
            return handler
        if handler is None:
            return self._not_there(method)
        if handler.request_streaming:
            raise NotImplementedError(f"{method} streams its requests, which no call of limner.v1 does")
        deserializer = _checked(handler.request_deserializer, self._gate.max_message_bytes)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._streamed(method, handler), deserializer, None)
        return grpc.unary_unary_rpc_method_handler(self._single(method, handler), deserializer, None)

    def _not_there(self, method: str) -> Any:
        """Return a handler for a method that is unknown, perhaps only because the server is still starting."""
        try:
            self._gate.check_open(method)
        except LimnerError:

            async def unavailable(_: Any, context: Context) -> None:
                # Not by its name, which may be anything: each would be a time series of its own.
                async with _around(self._gate, NOT_THERE, context) as ending:
                    self._gate.check_open(method)
                    raise ServerUnavailable("the server has only just started; try again")
                await ending.tell(context)

            return grpc.stream_stream_rpc_method_handler(unavailable)
        return None  # gRPC answers UNIMPLEMENTED

    def _single(self, method: str, handler: Any) -> Any:
        async def behaviour(request: Any, context: Context) -> bytes:
            data = b""
            async with _around(self._gate, method, context, level=logging.DEBUG) as ending:
                self._check_request(method, request)
                data = self._serialized(await handler.unary_unary(request, context), handler)
            await ending.tell(context)
            return data

        return behaviour

    def _streamed(self, method: str, handler: Any) -> Any:
        async def behaviour(request: Any, context: Context) -> None:
            async with _around(self._gate, method, context) as ending:
                self._check_request(method, request)
                async with aclosing(handler.unary_stream(request, context)) as responses:
                    async for response in responses:
                        data = self._serialized(response, handler)
                        del response  # a reader may take its time, and two copies are enough to keep for it
                        await context.write(data)
            await ending.tell(context)

        return behaviour

    def _check_request(self, method: str, request: Any) -> None:
        self._gate.check_open(method)
        if isinstance(request, _Refused):
            raise request.error

    def _serialized(self, response: Any, handler: Any) -> bytes:
        """Return a message's bytes. Done here and not by gRPC, to know how many they are without doing it twice."""
        data: bytes = handler.response_serializer(response)
        if len(data) > self._gate.max_message_bytes:
            raise ImageTooLarge(
                f"the result is {len(data)} bytes, and at most {self._gate.max_message_bytes} can be sent: "
                "ask for a lossy format",
                metadata={"limit": str(self._gate.max_message_bytes), "actual": str(len(data))},
            )
        return data


@dataclass
class _Ending:
    """How a call ended: with a status, or well."""

    status: status_pb2.Status | None = None

    async def tell(self, context: Context) -> None:
        """Abort the call if it failed. Outside of `except`: gRPC keeps what abort raises, that would keep the error
        that led to it, and its traceback the pictures that were worked on."""
        if self.status is not None:
            code = status.status_code(self.status)
            await context.abort(code, self.status.message, status.trailers(self.status))


@asynccontextmanager
async def _around(gate: Gate, method: str, context: Context, *, level: int = logging.INFO) -> AsyncIterator[_Ending]:
    """Stand around one call: what is raised inside becomes the status of the ending that it yields.

    Work streams its events. The calls with a single answer look at something or carry a piece of it, and many poll: of
    those that end well the log tells at `level`.
    """
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    # gRPC gives every call a task of its own, so what these variables are set to ends with it.
    logs.run_id.set(metadata.get(telemetry.RUN_ID_KEY, ""))
    logs.step.set(metadata.get(telemetry.STEP_KEY, ""))
    name = method.lstrip("/")
    started = time.perf_counter()
    told = "OK"
    ending = _Ending()
    with gate.hold(), telemetry.server_span(name, metadata) as span:
        try:
            yield ending
        except asyncio.CancelledError as error:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                told = "CANCELLED" if context.time_remaining() != 0 else "DEADLINE_EXCEEDED"
                raise
            # What the call awaited was cancelled, and not the call, which gRPC by itself would then never end.
            ending.status = status.to_status(RuntimeError(f"cancelled from inside: {error!r}"))
        except (grpc.aio.InternalError, grpc.aio.UsageError) as error:
            told = "CANCELLED"  # writing failed, as the reader is gone; gRPC logs anything else that is raised
            raise asyncio.CancelledError from error
        except Exception as error:
            ending.status = status.to_status(error)
            if isinstance(error, Overloaded | Unavailable):
                telemetry.refused.add(1, {"reason": error.reason})
            traceback.clear_frames(error.__traceback__)  # they lead back to the error, and to pictures
        finally:
            if ending.status is not None:
                told = status.status_code(ending.status).name
            seconds = time.perf_counter() - started
            telemetry.call_ended(span, name, told, seconds)
            _log.log(level if told == "OK" else logging.INFO, "%s %s %.0f ms", name, told, seconds * 1000)


@dataclass(frozen=True)
class _Refused:
    """Stands for a request that was not even parsed."""

    error: LimnerError


def _checked(deserializer: Callable[[bytes], Any], limit: int) -> Callable[[bytes], Any]:
    """Return a deserializer that lets the call say what is wrong with a message; gRPC itself would say it without
    details. The transport's own limit is somewhat above ours for that."""

    def deserialize(data: bytes) -> Any:
        if len(data) > limit:
            return _Refused(
                ImageTooLarge(
                    f"the request is {len(data)} bytes, and at most {limit} are taken: send a smaller picture, "
                    "a denser format, or a blob in pieces",
                    metadata={"limit": str(limit), "actual": str(len(data))},
                )
            )
        try:
            return deserializer(data)
        except DecodeError:
            return _Refused(BadArgument("the request is no message of this method's type; are the stubs of limner.v1?"))

    return deserialize
