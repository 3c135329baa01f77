"""The router's services: from proto to runs, blobs and models, and back; nothing else."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator
from typing import Any

from limner.core.errors import BadArgument, Cancelled
from limner.router.blobs import BlobStore
from limner.router.models import get_model, list_models, relay
from limner.router.pool import Pool
from limner.router.runs import Runs
from limner.runtime import logs
from limner.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
)

Context = Any  # grpc.aio.ServicerContext, whose type parameters say nothing here


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Speaks limner.v1.RouterService."""

    def __init__(self, runs: Runs, pool: Pool, blobs: BlobStore) -> None:
        self._runs = runs
        self._pool = pool
        self._blobs = blobs
        self._version = importlib.metadata.version("limner")

    async def Run(self, request: router_pb2.RunRequest, context: Context) -> AsyncIterator[router_pb2.RunResponse]:
        run = await self._runs.start(request, context.time_remaining())
        try:
            async for response in self._runs.read(run):
                yield response
        finally:
            run.leave()

    async def WatchRun(
        self, request: router_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[router_pb2.WatchRunResponse]:
        run = self._runs.find(request.run_id)
        logs.run_id.set(run.id)
        run.join(context.time_remaining())
        try:
            async for response in self._runs.read(run, request.after_sequence):
                yield _watched(response)
        finally:
            run.leave()

    async def CancelRun(self, request: router_pb2.CancelRunRequest, context: Context) -> router_pb2.CancelRunResponse:
        run = self._runs.find(request.run_id)
        logs.run_id.set(run.id)
        return router_pb2.CancelRunResponse(cancelled=await run.cancel(Cancelled("the run was cancelled by CancelRun")))

    async def GetStatus(self, request: router_pb2.GetStatusRequest, context: Context) -> router_pb2.GetStatusResponse:
        return router_pb2.GetStatusResponse(
            servers=[
                router_pb2.ServerStatus(
                    kind=backend.kind,
                    address=backend.address,
                    healthy=backend.usable,
                    active_call_count=backend.active,
                )
                for backend in self._pool.backends()
            ],
            active_run_count=self._runs.active_count,
            blob_bytes=self._blobs.bytes_used,
            blob_quota_bytes=self._blobs.quota_bytes,
            version=self._version,
        )


def _watched(response: router_pb2.RunResponse) -> router_pb2.WatchRunResponse:
    watched = router_pb2.WatchRunResponse()
    watched.event.CopyFrom(response.event)
    return watched


class BlobServicer(blobs_pb2_grpc.BlobServiceServicer):
    """Speaks limner.v1.BlobService."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def UploadBlob(self, request: blobs_pb2.UploadBlobRequest, context: Context) -> blobs_pb2.UploadBlobResponse:
        received, complete = await self._blobs.upload(
            request.blob_id, request.size_bytes, request.offset_bytes, request.data
        )
        return blobs_pb2.UploadBlobResponse(received_bytes=received, complete=complete)

    async def GetBlob(self, request: blobs_pb2.GetBlobRequest, context: Context) -> blobs_pb2.GetBlobResponse:
        size, expires = self._blobs.stat(request.blob_id)
        response = blobs_pb2.GetBlobResponse(size_bytes=size)
        response.expire_time.FromMilliseconds(round(expires * 1000))
        return response

    async def DownloadBlob(
        self, request: blobs_pb2.DownloadBlobRequest, context: Context
    ) -> AsyncIterator[blobs_pb2.DownloadBlobResponse]:
        async for piece in self._blobs.pieces(request.blob_id, request.offset_bytes):
            yield blobs_pb2.DownloadBlobResponse(data=piece)

    async def DeleteBlob(self, request: blobs_pb2.DeleteBlobRequest, context: Context) -> blobs_pb2.DeleteBlobResponse:
        await self._blobs.delete(request.blob_id)
        return blobs_pb2.DeleteBlobResponse()


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """Speaks limner.v1.ModelService for all servers."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        models = await list_models(self._pool, request.task, context.time_remaining())
        return models_pb2.ListModelsResponse(models=models)

    async def GetModel(self, request: models_pb2.GetModelRequest, context: Context) -> models_pb2.GetModelResponse:
        return models_pb2.GetModelResponse(
            model=await get_model(self._pool, _named(request.name), context.time_remaining())
        )

    async def LoadModel(
        self, request: models_pb2.LoadModelRequest, context: Context
    ) -> AsyncIterator[models_pb2.LoadModelResponse]:
        remaining = context.time_remaining()
        async for event in relay(self._pool, _named(request.name), remaining, lambda stub: stub.LoadModel, request):
            yield event

    async def UnloadModel(
        self, request: models_pb2.UnloadModelRequest, context: Context
    ) -> AsyncIterator[models_pb2.UnloadModelResponse]:
        remaining = context.time_remaining()
        async for event in relay(self._pool, _named(request.name), remaining, lambda stub: stub.UnloadModel, request):
            yield event


def _named(name: str) -> str:
    if not name:
        raise BadArgument("the name is missing; name a model, as ListModels lists them", field="name")
    return name
