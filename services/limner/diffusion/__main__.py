"""The diffusion server: `python -m limner.diffusion [--config FILE] [--port PORT]`."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from threading import Thread

from limner.core.codec import Limits
from limner.core.errors import BadArgument
from limner.diffusion.config import DiffusionConfig
from limner.diffusion.engine import Engine
from limner.diffusion.hardware import hardware
from limner.diffusion.library import Library
from limner.diffusion.servicer import DiffusionServicer
from limner.engine.catalog import State
from limner.engine.machine import Machine, this_machine
from limner.engine.servicer import ModelServicer
from limner.engine.store import open_store
from limner.runtime.config import ConfigError
from limner.runtime.device import Device
from limner.runtime.server import Server, run
from limner.v1 import diffusion_pb2_grpc, models_pb2_grpc

NEEDED = ("torch", "diffusers", "transformers")  # imported once a model is loaded, and missed at once


async def build(server: Server, config: DiffusionConfig) -> None:
    """Add the services, with all that they need. Raises ConfigError if packages are missing."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigError(f"diffusion: no {' and no '.join(missing)} is installed: pip install 'limner[diffusion]'")
    machine = this_machine()
    library = Library(config, open_store(config.model_dir), machine)
    engine = Engine(library, max_active=config.max_active)
    device = Device(device_name(config, machine), config.queue_limit, most_at_once=config.max_active)
    limits = Limits(config.max_image_bytes, config.max_image_pixels)
    servicer = DiffusionServicer(library, engine, device, limits, max_result_bytes=config.max_message_bytes)
    server.add(diffusion_pb2_grpc.add_DiffusionServiceServicer_to_server, servicer, "limner.v1.DiffusionService")
    server.add(
        models_pb2_grpc.add_ModelServiceServicer_to_server, ModelServicer(library, device), "limner.v1.ModelService"
    )

    async def close() -> None:
        device.close()
        engine.close()

    server.on_stop(close)
    if any(library.state(card.name) is State.INSTALLED for card in library.cards("generate") + library.cards("edit")):
        Thread(target=warm_up, name="limner-warm-up", daemon=True).start()


def device_name(config: DiffusionConfig, machine: Machine) -> str:
    """Return where models run. Raises ConfigError for a device that isn't here."""
    try:
        return hardware(machine, config.device).device
    except BadArgument as error:
        raise ConfigError(f"diffusion: {error.message}") from error


def warm_up() -> None:
    """Import what loading a model takes, which is seconds, before the first call needs it."""
    import_module("limner.diffusion.loading")
    import_module("limner.diffusion.sd3.model")


def main() -> None:
    """Serve until a signal."""
    run("diffusion", DiffusionConfig, build)


if __name__ == "__main__":
    main()
