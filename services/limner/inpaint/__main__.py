"""The inpaint server: `python -m limner.inpaint [--config FILE] [--port PORT]`."""

from __future__ import annotations

from limner.core.codec import Limits
from limner.engine.catalog import Catalog
from limner.engine.servicer import ModelServicer
from limner.engine.store import open_store
from limner.inpaint.config import InpaintConfig
from limner.inpaint.filler import Options
from limner.inpaint.models import MODELS
from limner.inpaint.servicer import InpaintServicer
from limner.runtime.device import Device
from limner.runtime.server import Server, run
from limner.v1 import inpaint_pb2_grpc, models_pb2_grpc


async def build(server: Server, config: InpaintConfig) -> None:
    """Add the services, with all that they need."""
    catalog = Catalog(
        MODELS,
        defaults={"inpaint": config.default_model},
        server="inpaint",
        config=config,
        store=open_store(config.model_dir),
    )
    at_once = max(source.window(Options()).most_at_once for source in MODELS.values())
    device = Device("cpu", config.queue_limit, most_at_once=min(at_once, config.max_batch or at_once))
    limits = Limits(config.max_image_bytes, config.max_image_pixels)
    server.add(
        inpaint_pb2_grpc.add_InpaintServiceServicer_to_server,
        InpaintServicer(MODELS, catalog, device, limits, config.max_batch),
        "limner.v1.InpaintService",
    )
    server.add(
        models_pb2_grpc.add_ModelServiceServicer_to_server, ModelServicer(catalog, device), "limner.v1.ModelService"
    )

    async def close() -> None:
        device.close()

    server.on_stop(close)


def main() -> None:
    """Serve until a signal."""
    run("inpaint", InpaintConfig, build)


if __name__ == "__main__":
    main()
