"""The segment server: `python -m limner.segment [--config FILE] [--port PORT]`."""

from __future__ import annotations

from importlib import import_module
from threading import Thread

from limner.core.codec import Limits
from limner.engine.catalog import Catalog
from limner.engine.servicer import ModelServicer
from limner.engine.store import open_store
from limner.runtime.device import Device
from limner.runtime.server import Server, run
from limner.segment.cache import EmbeddingCache
from limner.segment.config import SegmentConfig
from limner.segment.models import MODELS
from limner.segment.servicer import SegmentServicer
from limner.v1 import models_pb2_grpc, segment_pb2_grpc


async def build(server: Server, config: SegmentConfig) -> None:
    """Add the services, with all that they need."""
    catalog = Catalog(
        MODELS,
        defaults={"segment": config.default_model, "remove-background": config.default_background_model},
        server="segment",
        config=config,
        store=open_store(config.model_dir),
    )
    device = Device("cpu", config.queue_limit)
    limits = Limits(config.max_image_bytes, config.max_image_pixels)
    servicer = SegmentServicer(catalog, device, limits, EmbeddingCache(config.embedding_cache_bytes))
    server.add(segment_pb2_grpc.add_SegmentServiceServicer_to_server, servicer, "limner.v1.SegmentService")
    server.add(
        models_pb2_grpc.add_ModelServiceServicer_to_server, ModelServicer(catalog, device), "limner.v1.ModelService"
    )

    async def close() -> None:
        device.close()

    server.on_stop(close)
    # scipy takes a second to import: nobody waits for it before the first click, and seldom then.
    Thread(target=import_module, args=("limner.segment.find",), daemon=True).start()


def main() -> None:
    """Serve until a signal."""
    run("segment", SegmentConfig, build)


if __name__ == "__main__":
    main()
