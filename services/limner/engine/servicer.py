"""`limner.v1.ModelService` of one model server: its models as messages. Knows no engine: who keeps the models says what
there is, `limner.engine.catalog.Catalog` or another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc

from limner.core.card import ModelCard
from limner.core.placement import Placement
from limner.engine.budget import Measured
from limner.engine.catalog import State
from limner.runtime.call import Work, stream
from limner.runtime.device import Device
from limner.runtime.job import Job
from limner.runtime.messages import placement_to_proto
from limner.v1 import models_pb2, models_pb2_grpc

STATES = {
    State.NOT_INSTALLED: models_pb2.MODEL_STATE_NOT_INSTALLED,
    State.INSTALLED: models_pb2.MODEL_STATE_INSTALLED,
    State.LOADED: models_pb2.MODEL_STATE_LOADED,
}


class Models(Protocol):
    """The models of one server, as `limner.engine.catalog.Catalog` offers them; what each does and raises is there."""

    @property
    def server(self) -> str:
        """The server's kind, such as `inpaint`."""
        ...

    def card(self, name: str) -> ModelCard: ...

    def cards(self, task: str | None = None) -> list[ModelCard]: ...

    def default(self, task: str) -> str: ...

    def placement(self, name: str) -> Placement: ...

    def digest(self, name: str) -> str: ...

    def measured(self, name: str) -> Measured | None: ...

    def state(self, name: str) -> State: ...

    def get(self, name: str, *, job: Job | None = None) -> Any:
        """Load the model if it isn't; called on the device's thread."""
        ...

    def unload(self, name: str) -> None:
        """Unload the model if it is loaded; called on the device's thread."""
        ...


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """Lists and describes at once; loads and unloads on the device's thread, in turn with the calls that use it."""

    def __init__(self, models: Models, device: Device) -> None:
        self._models = models
        self._device = device

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> models_pb2.ListModelsResponse:
        return models_pb2.ListModelsResponse(
            models=[self._model(card) for card in self._models.cards(request.task or None)]
        )

    async def GetModel(
        self, request: models_pb2.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> models_pb2.GetModelResponse:
        return models_pb2.GetModelResponse(model=self._model(self._models.card(request.name)))

    async def LoadModel(
        self, request: models_pb2.LoadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[models_pb2.LoadModelResponse]:
        def load(job: Job, card: ModelCard) -> ModelCard:
            self._models.get(card.name, job=job)
            return card

        work = self._work(self._models.card(request.name), load)
        async for response in stream(context, self._device, models_pb2.LoadModelResponse, work):
            yield response

    async def UnloadModel(
        self, request: models_pb2.UnloadModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[models_pb2.UnloadModelResponse]:
        def unload(job: Job, card: ModelCard) -> ModelCard:
            with job.stage("unload"):
                self._models.unload(card.name)
            return card

        work = self._work(self._models.card(request.name), unload)
        async for response in stream(context, self._device, models_pb2.UnloadModelResponse, work):
            yield response

    def _work(self, card: ModelCard, run: Any) -> Work[ModelCard, ModelCard, models_pb2.Model]:
        return Work(
            decode=lambda job: card,
            run=run,
            encode=lambda job, card: self._model(card),
            placement=lambda card: self._models.placement(card.name),
            model=card.name,
            digest=self._models.digest(card.name),
        )

    def _model(self, card: ModelCard) -> models_pb2.Model:
        state = self._models.state(card.name)
        measured = self._models.measured(card.name)
        return models_pb2.Model(
            name=card.name,
            task=card.task,
            description=card.description,
            licence=card.licence,
            source=card.source,
            digest=self._models.digest(card.name),
            size_multiple=card.size_multiple,
            minimum_side_px=card.minimum_side,
            precisions=card.precisions,
            memory_estimate_bytes=card.memory_estimate_bytes,
            state=STATES[state],
            placement=placement_to_proto(self._models.placement(card.name)) if state is State.LOADED else None,
            server=self._models.server,
            default=self._models.default(card.task) == card.name,
            memory_loaded_bytes=measured.loaded_bytes if measured else 0,
            memory_call_bytes=measured.call_bytes if measured else 0,
            memory_call_pixels=measured.call_pixels if measured else 0,
        )
