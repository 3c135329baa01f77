"""A gRPC server from its command line to its last call.

    def main() -> None:
        run("inpaint", InpaintConfig, build)

    async def build(server: Server, config: InpaintConfig) -> None:
        device = Device("cpu", config.queue_limit)
        server.add(add_InpaintServiceServicer_to_server, InpaintServicer(device), "limner.v1.InpaintService")
        server.on_stop(close)                  # an async function without arguments

It listens first and says NOT_SERVING while `build` loads. On SIGTERM or SIGINT it says NOT_SERVING, refuses new calls
with STOPPING, and lets running ones end for `drain_seconds`; a second signal stops it at once.
Knows nothing of what it serves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from limner.core.errors import ServerUnavailable, Stopping
from limner.runtime import logs, telemetry
from limner.runtime.config import ConfigError, ServerConfig, load_config
from limner.runtime.interceptor import Interceptor

C = TypeVar("C", bound=ServerConfig)

HOOK_S = 10.0  # how long ending one thing may take
FOLLOW_UP_S = 0.5  # how long a stopping server waits for the call by which a caller fetches what the last one made
LAST_BREATH_S = 3.0  # how long threads and telemetry may go on after everything else has ended
SAME_SIGNAL_S = 0.3  # Ctrl-C may come twice: from the terminal, and from the program that started this one
AT_ONCE_S = 0.2  # the same after a second signal

_log = logging.getLogger("limner.server")


class Server:
    """What `build` is given: a place to add services to."""

    def __init__(self, section: str, config: ServerConfig) -> None:
        limit = config.max_message_bytes
        self.section = section
        self.max_message_bytes = limit
        self.host = config.host
        self.port = config.port  # the real one, once it listens
        self.grpc = grpc.aio.server(
            interceptors=[Interceptor(self)],
            options=[
                ("grpc.so_reuseport", 0),  # a second server on the port is a mistake that must be seen
                # Above our own limit, so that a message somewhat too large gets an answer that says so.
                ("grpc.max_receive_message_length", limit + max(limit // 4, 1 << 20)),
                ("grpc.max_send_message_length", limit + max(limit // 4, 1 << 20)),
                ("grpc.max_metadata_size", 64 << 10),
                # Clients may ping every 5 s, also between calls; the default takes that for an attack.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                # A client whose machine vanished is noticed within 40 s.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.ping_timeout_ms", 10_000),  # keepalive_timeout alone leaves a frozen peer unnoticed
            ],
        )
        self._drain_seconds = config.drain_seconds
        self._health = health.aio.HealthServicer()
        self._services: list[str] = []
        self._stop_hooks: list[Callable[[], Awaitable[None]]] = []
        self._drain_hooks: list[Callable[[], Awaitable[None]]] = []
        self._open_to_the_end: set[str] = set()  # methods
        self._state = "starting"  # then `serving`, `stopping`
        self._diagnosed = False
        self._held = 0
        self._hurry = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(
        self,
        add_to_server: Callable[[Any, Any], None],
        servicer: Any,
        service_name: str,
        *,
        open_to_the_end: Collection[str] = (),
    ) -> None:
        """Serve a service: `add(add_InpaintServiceServicer_to_server, servicer, "limner.v1.InpaintService")`.

        Methods that are `open_to_the_end` begin no work, and are taken also while the server stops."""
        add_to_server(servicer, _GenericOnly(self.grpc))
        self._services.append(service_name)
        self._open_to_the_end |= {f"/{service_name}/{method}" for method in open_to_the_end}

    def on_stop(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Await `hook()` when the server stops, after the last call; the last one added is awaited first."""
        self._stop_hooks.append(hook)

    def on_drained(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Await `hook()` when the server stops and waits no longer, while calls can still be told how they end."""
        self._drain_hooks.append(hook)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Do something that a stopping server waits for, as it does for calls."""
        self._held += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._held -= 1
            if not self._held:
                self._idle.set()

    def check_open(self, method: str) -> None:
        """Raise unless calls are taken now: ServerUnavailable before everything is loaded, Stopping at the end."""
        if self._state == "starting":
            raise ServerUnavailable(f"the {self.section} server is still starting; try again in a moment")
        if self._state == "stopping" and method not in self._open_to_the_end:
            raise Stopping(f"the {self.section} server is stopping and takes no new work; try another one")

    async def listen(self) -> None:
        """Open the port and answer health checks with NOT_SERVING. Raises ConfigError if the port can't be had."""
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)  # it begins as SERVING
        health_pb2_grpc.add_HealthServicer_to_server(self._health, _GenericOnly(self.grpc))
        address = f"[{self.host}]" if ":" in self.host else self.host
        try:
            self.port = self.grpc.add_insecure_port(f"{address}:{self.port}")
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {self.host}:{self.port}; is another server there?") from error
        await self.grpc.start()
        _log.info("listening on %s:%d", address, self.port)

    async def serve(self) -> None:
        """Take calls, and say SERVING for every service."""
        self._state = "serving"
        for name in [*self._services, ""]:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def add_diagnostics(self) -> None:
        """Serve reflection and channelz. At their first call, as importing them takes a fifth of the start-up."""
        if self._diagnosed:
            return
        self._diagnosed = True
        from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
        from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

        channelz_name = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name
        names = [*self._services, health.SERVICE_NAME, channelz_name, reflection.SERVICE_NAME]
        target = _GenericOnly(self.grpc)
        channelz_pb2_grpc.add_ChannelzServicer_to_server(channelz.aio.ChannelzServicer(), target)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), target)

    def hurry(self) -> None:
        """Make `stop` wait no longer for what runs."""
        self._hurry.set()

    async def stop(self) -> None:
        """Refuse new calls, let running ones end for `drain_seconds`, end the rest, and await the hooks."""
        if self._state == "stopping":
            return
        self._state = "stopping"
        await self._health.enter_graceful_shutdown()
        if self._held:
            _log.info("stopping: %d calls may go on for %.0f s", self._held, self._drain_seconds)
            await _first_of(self._drained(), self._hurry.wait(), timeout=self._drain_seconds)
        await _end_all(self._drain_hooks)
        await self.grpc.stop(0.2)  # enough for last messages to leave
        await _end_all(self._stop_hooks)

    async def _drained(self) -> None:
        """Wait until nothing is under way, and nothing more comes of it."""
        await self._idle.wait()
        while self._open_to_the_end:
            await asyncio.sleep(FOLLOW_UP_S)
            if not self._held:
                return
            await self._idle.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class _GenericOnly:
    """What generated code adds a service to. It registers methods a second time in a way that works only before the
    server starts, and ours listens before it knows its services."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Nothing: the generic handler serves the same methods."""


async def start(section: str, config: C, build: Callable[[Server, C], Awaitable[None]]) -> Server:
    """Return a running server without signals, command line or logs: `async with await start(…) as server:`."""
    server = Server(section, config)
    await server.listen()
    try:
        await build(server, config)
        await server.serve()
    except BaseException:
        await server.stop()
        raise
    return server


def run(section: str, kind: type[C], build: Callable[[Server, C], Awaitable[None]]) -> None:
    """Be the process of a server: `python -m limner.<section> [--config FILE] [--host HOST] [--port PORT]`."""
    parser = argparse.ArgumentParser(prog=f"python -m limner.{section}", description=f"Limner's {section} server.")
    parser.add_argument("--config", type=Path, help=f"a TOML file; its section [{section}] is read")
    parser.add_argument("--host", help="the address to listen on")
    parser.add_argument("--port", type=int, help="the port to listen on; 0 for any free one")
    arguments = parser.parse_args()
    began = time.perf_counter()
    try:
        config = _configuration(section, kind, arguments)
        logs.set_up(config.log_format, config.log_level)
        end_telemetry = telemetry.set_up(section)
        breath = AT_ONCE_S
        try:
            if not asyncio.run(_serve_until_signal(section, config, build, began)):
                breath = LAST_BREATH_S
        finally:
            end_telemetry(breath)
    except ConfigError as error:
        sys.exit(f"{parser.prog}: {error}")
    _exit_although_threads_run(breath)


def _configuration(section: str, kind: type[C], arguments: argparse.Namespace) -> C:
    """Return the file's and the environment's settings, with the command line's on top."""
    config = load_config(section, kind, arguments.config)
    given = {key: value for key in ("host", "port") if (value := getattr(arguments, key)) is not None}
    try:
        return dataclasses.replace(config, **given)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error


async def _serve_until_signal(
    section: str, config: C, build: Callable[[Server, C], Awaitable[None]], began: float
) -> bool:
    """Serve until told to stop; return whether it was told twice."""
    asked = asyncio.Event()
    told_twice, told_at = False, 0.0
    server: Server | None = None

    def on_signal() -> None:
        nonlocal told_twice, told_at
        if not asked.is_set():
            told_at = time.monotonic()
            asked.set()
        elif time.monotonic() - told_at > SAME_SIGNAL_S:
            told_twice = True
            if server is None:
                os._exit(1)  # still loading, perhaps on a thread that nothing else can end
            server.hurry()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    starting = asyncio.create_task(start(section, config, build))
    await _first_of(asyncio.shield(starting), asked.wait())
    if not starting.done():  # told to stop while loading
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return told_twice
    server = await starting
    async with server:
        _log.info("serving after %.1f s", time.perf_counter() - began)
        await asked.wait()
        _log.info("stopping; a second signal stops at once")
    _log.info("stopped")
    return told_twice


async def _end_all(hooks: Sequence[Callable[[], Awaitable[None]]]) -> None:
    for hook in reversed(hooks):
        try:
            await asyncio.wait_for(hook(), HOOK_S)
        except Exception:
            _log.exception("something failed to end while stopping")


async def _first_of(*awaitables: Awaitable[object], timeout: float | None = None) -> None:
    """Wait for the first of several, or the time-out."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _exit_although_threads_run(within_s: float) -> None:
    """End the process even if a device's thread is in the middle of a long step, which Python would wait for."""
    until = time.monotonic() + within_s
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(until - time.monotonic(), 0))
            if thread.is_alive():
                _log.warning("thread %s is still at work and is given up", thread.name)
                logging.shutdown()
                os._exit(0)
