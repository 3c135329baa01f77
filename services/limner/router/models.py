"""The models of all servers as if they were one server's. Knows the pool and ModelService, nothing of runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from limner.core.errors import LimnerError, ServerUnavailable, UnknownModel
from limner.router.pool import Backend, Pool
from limner.runtime import telemetry
from limner.runtime.status import from_status
from limner.v1 import models_pb2, models_pb2_grpc

# A server that doesn't list its models within this is left out.
LIST_SECONDS = 5.0


async def list_models(pool: Pool, task: str, remaining: float | None) -> list[models_pb2.Model]:
    """Return the models of all healthy servers, by server, then name; of equal servers the readiest one's."""
    merged: dict[tuple[str, str], models_pb2.Model] = {}
    for models in (await _models_by_backend(pool, task, remaining)).values():
        for model in models:
            key = (model.server, model.name)
            if key not in merged or model.state > merged[key].state:
                merged[key] = model
    return [merged[key] for key in sorted(merged)]


async def get_model(pool: Pool, name: str, remaining: float | None) -> models_pb2.Model:
    """Return one model. Raises UnknownModel, or ServerUnavailable if there is no server to ask."""
    models = await list_models(pool, "", remaining)
    for model in models:
        if model.name == name:
            return model
    raise _unknown(pool, name, [model.name for model in models])


async def relay(
    pool: Pool,
    name: str,
    remaining: float | None,
    method: Callable[[Any], Any],
    request: Any,
) -> AsyncIterator[Any]:
    """Have every healthy server that offers a model load or unload it, and yield their events as they come.

    The last result and its Finished stand for all: they come when every server is done. Raises the first error.
    """
    offered = await _models_by_backend(pool, "", remaining)
    backends = [backend for backend, models in offered.items() if any(model.name == name for model in models)]
    if not backends:
        raise _unknown(pool, name, [model.name for models in offered.values() for model in models])
    events: asyncio.Queue[Any] = asyncio.Queue()
    tasks = [asyncio.create_task(_forward(pool, backend, method, request, remaining, events)) for backend in backends]
    last: dict[str, Any] = {}
    working = len(tasks)
    try:
        while working:
            event = await events.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                working -= 1
            elif (kind := event.WhichOneof("event")) in ("result", "finished"):
                last[kind] = event
            else:
                yield event
        for kind in ("result", "finished"):
            if kind in last:
                yield last[kind]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(
    pool: Pool,
    backend: Backend,
    method: Callable[[Any], Any],
    request: Any,
    remaining: float | None,
    events: asyncio.Queue[Any],
) -> None:
    """Put one server's events into the queue, and None, or the error, at their end."""
    try:
        metadata, timeout = telemetry.outgoing(remaining=remaining)
        with pool.using(backend):
            call = method(models_pb2_grpc.ModelServiceStub(backend.channel))(
                request, metadata=metadata, timeout=timeout
            )
            try:
                async for event in call:
                    events.put_nowait(event)
            except grpc.aio.AioRpcError as error:
                raise from_status(error) from None
            finally:
                call.cancel()
    except LimnerError as error:
        events.put_nowait(error)
    else:
        events.put_nowait(None)


async def _models_by_backend(pool: Pool, task: str, remaining: float | None) -> dict[Backend, list[models_pb2.Model]]:
    metadata, timeout = telemetry.outgoing(remaining=remaining)
    timeout = LIST_SECONDS if timeout is None else min(timeout, LIST_SECONDS)

    async def ask(backend: Backend) -> list[models_pb2.Model]:
        stub = models_pb2_grpc.ModelServiceStub(backend.channel)
        try:
            response = await stub.ListModels(
                models_pb2.ListModelsRequest(task=task), metadata=metadata, timeout=timeout
            )
        except grpc.aio.AioRpcError:
            return []  # it went away, or speaks no ModelService
        return list(response.models)

    backends = [backend for backend in pool.backends() if backend.usable]
    return dict(zip(backends, await asyncio.gather(*map(ask, backends)), strict=True))


def _unknown(pool: Pool, name: str, available: list[str]) -> LimnerError:
    if not any(backend.usable for backend in pool.backends()):
        return ServerUnavailable("no model server is healthy, so no model is known; start one, or look at its log")
    return UnknownModel(name, available=set(available))
