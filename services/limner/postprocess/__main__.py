"""The postprocess server: `python -m limner.postprocess [--config FILE] [--port PORT]`."""

from __future__ import annotations

from limner.core.codec import Limits
from limner.engine.catalog import Catalog
from limner.engine.servicer import ModelServicer
from limner.engine.store import open_store
from limner.postprocess.config import PostprocessConfig
from limner.postprocess.models import MODELS
from limner.postprocess.servicer import Bounds, PostprocessServicer
from limner.runtime.device import Device
from limner.runtime.server import Server, run
from limner.v1 import models_pb2_grpc, postprocess_pb2_grpc


async def build(server: Server, config: PostprocessConfig) -> None:
    """Add the services, with all that they need."""
    catalog = Catalog(
        MODELS,
        defaults={"upscale": config.default_model},
        server="postprocess",
        config=config,
        store=open_store(config.model_dir),
    )
    device = Device("cpu", config.queue_limit)
    editor = Device("editor", config.queue_limit)
    bounds = Bounds(
        Limits(config.max_image_bytes, config.max_image_pixels),
        output_pixels=config.max_output_pixels,
        message_bytes=config.max_message_bytes,
        tile_memory_bytes=config.tile_memory_bytes,
    )
    server.add(
        postprocess_pb2_grpc.add_PostprocessServiceServicer_to_server,
        PostprocessServicer(MODELS, catalog, device=device, editor=editor, bounds=bounds),
        "limner.v1.PostprocessService",
    )
    server.add(
        models_pb2_grpc.add_ModelServiceServicer_to_server, ModelServicer(catalog, device), "limner.v1.ModelService"
    )

    async def close() -> None:
        device.close()
        editor.close()

    server.on_stop(close)


def main() -> None:
    """Serve until a signal."""
    run("postprocess", PostprocessConfig, build)


if __name__ == "__main__":
    main()
