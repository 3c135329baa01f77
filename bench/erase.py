"""How the time of an erase follows the mask and not the picture: 512², 1 and 12 megapixels through the router."""

from __future__ import annotations

import statistics
import time

from bench import calls, pictures
from bench.figures import Figures, median_ms
from limner.client.local import LocalServers

SIZES = {"512": (512, 512, 100), "1mp": (1024, 1024, 200), "12mp": (4000, 3000, 200)}
PIXEL_CODING = {"queue", "decode", "encode"}


def measure(servers: LocalServers, *, quick: bool, model: str = "") -> Figures:
    """Return, by size, the whole call and what is neither waiting, decoding nor encoding, in milliseconds.

    `ratio_12mp_to_1mp` compares the latter for the same 200×200 hole; target: at most 2.
    """
    model = model or servers_default(servers)
    figures: dict[str, float | int | str | bool] = {"model": model}
    work: dict[str, float] = {}
    with calls.channel(servers.address("router")) as router:
        for name, (width, height, side) in SIZES.items():
            image, mask = pictures.photograph(width, height), pictures.hole(width, height, side, side)
            whole, core = [], []
            for turn in range(3 if quick else 7):
                began = time.perf_counter()
                _, finished = calls.inpaint_routed(router, image, mask, model)
                if turn:  # the first one warms up
                    whole.append(time.perf_counter() - began)
                    stages = calls.seconds_by_stage(finished)
                    core.append(sum(took for stage, took in stages.items() if stage not in PIXEL_CODING))
            work[name] = statistics.median(core)
            figures[f"whole_{name}_ms"] = median_ms(whole)
            figures[f"fill_{name}_ms"] = median_ms(core)
    figures["ratio_12mp_to_1mp"] = round(work["12mp"] / work["1mp"], 2)
    figures["target_ratio"] = 2
    return figures


def servers_default(servers: LocalServers) -> str:
    """Return the name of the inpaint server's default model."""
    from limner.v1 import models_pb2, models_pb2_grpc

    with calls.channel(servers.address("inpaint")) as inpaint:
        listed = models_pb2_grpc.ModelServiceStub(inpaint).ListModels(models_pb2.ListModelsRequest(task="inpaint"))
    return next(model.name for model in listed.models if model.default)
