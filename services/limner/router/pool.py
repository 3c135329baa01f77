"""The model servers that the router knows: which there are, which are healthy, and which has the least to do.

Knows addresses, channels and the health service, and nothing of steps or runs. A server is healthy while its own health
service says SERVING; keepalive pings find out when it is frozen or cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from limner.core.errors import ServerUnavailable
from limner.router.bell import Bell

_log = logging.getLogger(__name__)
_FIRST_BACKOFF = 0.1
_LONGEST_BACKOFF = 5.0


@dataclass(frozen=True)
class PoolSettings:
    """Times are in seconds."""

    keepalive_time: float = 5.0  # a ping after this long without traffic
    keepalive_timeout: float = 5.0  # the server is gone if it doesn't answer within this
    connect_wait: float = 2.0  # how long a step waits for a healthy server of its kind
    resolve_interval: float = 5.0  # `dns:///` names are looked up again this often
    max_message_bytes: int = 512 << 20


@dataclass(eq=False)
class Backend:
    """One server at one address."""

    kind: str
    address: str  # host:port
    channel: grpc.aio.Channel
    healthy: bool = False
    active: int = 0  # calls of this router
    last_used: int = 0  # ties go to the one that was used least recently
    doubted: asyncio.Event = field(default_factory=asyncio.Event)  # a call failed: ask its health anew
    leaving: bool = False  # its name no longer resolves to it: no new calls

    @property
    def usable(self) -> bool:
        """Tell whether it takes new calls."""
        return self.healthy and not self.leaving

    def doubt(self) -> None:
        """Avoid it until its health service has said SERVING again."""
        self.healthy = False
        self.doubted.set()


class Pool:
    """All servers, by kind."""

    def __init__(self, targets: Mapping[str, Sequence[str]], settings: PoolSettings) -> None:
        """`targets` are `host:port`, one server, or `dns:///host:port`, one server for each of the name's addresses."""
        self._targets = {kind: tuple(kind_targets) for kind, kind_targets in targets.items()}
        self._settings = settings
        self._backends: list[Backend] = []
        self._tasks: dict[Backend | str, asyncio.Task[None]] = {}
        self._bell = Bell()
        self._lines: dict[str, asyncio.Lock] = {}
        self._uses = 0

    async def start(self) -> None:
        """Begin to watch the servers. Returns at once; who needs one waits in `choose`."""
        for kind, targets in self._targets.items():
            for target in targets:
                if target.startswith("dns:"):
                    self._tasks[f"{kind} {target}"] = asyncio.create_task(self._resolve_for_ever(kind, target))
                else:
                    self._add(kind, target, target)

    async def close(self) -> None:
        """Stop watching and close all channels."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for backend in self._backends:
            await backend.channel.close()

    def backends(self) -> list[Backend]:
        """Return all servers, by kind and address."""
        return sorted(self._backends, key=lambda backend: (backend.kind, backend.address))

    async def choose(self, kind: str, *, tried: set[Backend], patience: float | None = None) -> Backend:
        """Return the healthy server of a kind with the fewest calls, rather one that isn't in `tried`.

        Waits a little, at most `patience` seconds, for one to become healthy. Raises ServerUnavailable.
        """
        loop = asyncio.get_running_loop()
        wait = self._settings.connect_wait
        give_up = loop.time() + (wait if patience is None else min(wait, patience))
        while True:
            rung = self._bell.listen()
            usable = [backend for backend in self._backends if backend.kind == kind and backend.usable]
            candidates = [backend for backend in usable if backend not in tried] or usable
            if candidates:
                return min(candidates, key=lambda backend: (backend.active, backend.last_used))
            wait = give_up - loop.time()
            if wait <= 0 or not self._targets.get(kind):
                raise self._none_healthy(kind)
            # Not wait_for: it loses a cancellation that comes together with the ring (CPython issue 86296).
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await rung.wait()

    def others(self, kind: str, than: set[Backend]) -> bool:
        """Tell whether a healthy server of the kind is not in `than`."""
        return any(backend.kind == kind and backend.usable and backend not in than for backend in self._backends)

    def line(self, kind: str) -> asyncio.Lock:
        """Return what the first of those that wait for any server of a kind holds; it goes to them in their order."""
        return self._lines.setdefault(kind, asyncio.Lock())

    @contextlib.contextmanager
    def using(self, backend: Backend) -> Iterator[None]:
        """Count a call for the time of the block."""
        self._uses += 1
        backend.last_used = self._uses
        backend.active += 1
        try:
            yield
        finally:
            backend.active -= 1

    def _none_healthy(self, kind: str) -> ServerUnavailable:
        addresses = ", ".join(self._targets.get(kind, ()))
        if not addresses:
            return ServerUnavailable(
                f"the router knows no {kind} server; give addresses in router.{kind}", metadata={"kind": kind}
            )
        return ServerUnavailable(
            f"no {kind} server is healthy (router.{kind}: {addresses}); start one, or look at its log",
            metadata={"kind": kind, "address": addresses},
        )

    def _add(self, kind: str, address: str, target: str) -> Backend:
        backend = Backend(kind, address, grpc.aio.insecure_channel(target, options=self._channel_options()))
        self._backends.append(backend)
        self._tasks[backend] = asyncio.create_task(self._watch_for_ever(backend))
        return backend

    def _channel_options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self._settings.max_message_bytes),
            ("grpc.max_send_message_length", self._settings.max_message_bytes),
            ("grpc.keepalive_time_ms", round(self._settings.keepalive_time * 1000)),
            ("grpc.keepalive_timeout_ms", round(self._settings.keepalive_timeout * 1000)),
            # The one that counts: keepalive_timeout alone left a frozen server unnoticed for a minute.
            ("grpc.http2.ping_timeout_ms", round(self._settings.keepalive_timeout * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),  # also the time a connection has to come about
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_retries", 0),  # a step is retried by us, on another server
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]

    def _set_healthy(self, backend: Backend, healthy: bool) -> None:
        if healthy != backend.healthy:
            _log.info("%s server %s is %s", backend.kind, backend.address, "healthy" if healthy else "not healthy")
        backend.healthy = healthy
        if healthy:
            self._bell.ring()

    async def _watch_for_ever(self, backend: Backend) -> None:
        """Keep `backend.healthy` true to what its health service says."""
        stub = health_pb2_grpc.HealthStub(backend.channel)
        backoff = _FIRST_BACKOFF
        while True:
            call = stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            backend.doubted.clear()
            doubt = asyncio.create_task(backend.doubted.wait())
            doubt.add_done_callback(functools.partial(_cancel, call))
            try:
                async for response in call:
                    self._set_healthy(backend, response.status == health_pb2.HealthCheckResponse.SERVING)
                    if backend.healthy:
                        backoff = _FIRST_BACKOFF
            except grpc.aio.AioRpcError as error:
                _log.debug("%s server %s: %s", backend.kind, backend.address, error.details())
            except asyncio.CancelledError:
                if not backend.doubted.is_set() or _is_cancelled():
                    raise
            finally:
                doubt.cancel()
                call.cancel()
            self._set_healthy(backend, False)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LONGEST_BACKOFF)

    async def _resolve_for_ever(self, kind: str, target: str) -> None:
        """Keep one backend for each address of a name, as a headless Kubernetes service has them."""
        loop = asyncio.get_running_loop()
        host, _, port = target.removeprefix("dns:").lstrip("/").rpartition(":")
        mine: dict[str, Backend] = {}
        while True:
            try:
                found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
            except OSError as error:  # what was known stays: its health tells whether it is still there
                _log.warning("%s: the name does not resolve: %s", target, error)
            else:
                addresses = {_address(family, sockaddr) for family, _, _, _, sockaddr in found}
                for address in sorted(addresses - mine.keys()):
                    mine[address] = self._add(kind, address, address)
                for address in mine.keys() - addresses:
                    mine[address].leaving = True
                    if not mine[address].active:
                        await self._remove(mine.pop(address))
                for address in mine.keys() & addresses:
                    mine[address].leaving = False
            await asyncio.sleep(self._settings.resolve_interval)

    async def _remove(self, backend: Backend) -> None:
        self._backends.remove(backend)
        task = self._tasks.pop(backend)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await backend.channel.close()


def _address(family: int, sockaddr: tuple[object, ...]) -> str:
    host, port = sockaddr[0], sockaddr[1]
    return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"


def _cancel(call: Any, _: object) -> None:
    call.cancel()


def _is_cancelled() -> bool:
    """Tell whether somebody cancelled this task, rather than the call that it was reading."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
