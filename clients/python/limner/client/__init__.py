"""Limner's Python client.

    from limner.client import Client

    with Client("127.0.0.1:7400") as client:
        repaired = client.erase("photo.jpg", clicks=[(420, 310)])

Names are imported when they are first used, so that `limner --help` needs not wait for gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limner.client.asynchronous import AsyncClient as AsyncClient
    from limner.client.asynchronous import AsyncRun as AsyncRun
    from limner.client.errors import Cancelled as Cancelled
    from limner.client.errors import InvalidRequest as InvalidRequest
    from limner.client.errors import NotFound as NotFound
    from limner.client.errors import Overloaded as Overloaded
    from limner.client.errors import RequestFailed as RequestFailed
    from limner.client.errors import TimedOut as TimedOut
    from limner.client.errors import Unavailable as Unavailable
    from limner.client.errors import Violation as Violation
    from limner.client.jobs import Job as Job
    from limner.client.local import LocalServers as LocalServers
    from limner.client.local import ServiceFailed as ServiceFailed
    from limner.client.pictures import ImageSource as ImageSource
    from limner.client.pipelines import BadPipelineFile as BadPipelineFile
    from limner.client.pipelines import load_pipeline as load_pipeline
    from limner.client.results import Result as Result
    from limner.client.synchronous import Client as Client
    from limner.client.synchronous import Run as Run
    from limner.v1.images_pb2 import Image as Image

_HOMES = {
    "AsyncClient": "limner.client.asynchronous",
    "AsyncRun": "limner.client.asynchronous",
    "BadPipelineFile": "limner.client.pipelines",
    "Cancelled": "limner.client.errors",
    "Client": "limner.client.synchronous",
    "Image": "limner.v1.images_pb2",
    "ImageSource": "limner.client.pictures",
    "InvalidRequest": "limner.client.errors",
    "Job": "limner.client.jobs",
    "LocalServers": "limner.client.local",
    "NotFound": "limner.client.errors",
    "Overloaded": "limner.client.errors",
    "RequestFailed": "limner.client.errors",
    "Result": "limner.client.results",
    "Run": "limner.client.synchronous",
    "ServiceFailed": "limner.client.local",
    "TimedOut": "limner.client.errors",
    "Unavailable": "limner.client.errors",
    "Violation": "limner.client.errors",
    "load_pipeline": "limner.client.pipelines",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
