"""How soon a cancelled call gives the device back: a second call waits behind it and says when it has started."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench import calls, pictures
from bench.figures import Figures, median_ms, p95_ms
from limner.client.local import LocalServers
from limner.v1 import (
    images_pb2,
    inpaint_pb2,
    inpaint_pb2_grpc,
    postprocess_pb2,
    postprocess_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
)

UPSCALER = postprocess_pb2.UpscaleOptions(model="realesrgan-animevideov3", scale=2)

Probe = Callable[[], Iterator[Any]]  # a call that waits for the device of the cancelled one


def measure(servers: LocalServers, *, quick: bool, model: str) -> Figures:
    """Return milliseconds from the client's cancel of a Run to the next call's start on the device: of an erase, which
    ends at once, and of an upscale, which ends with its tile."""
    turns = 5 if quick else 25
    image = pictures.photograph(1024, 1024)
    small = images_pb2.Image(encoded=pictures.photograph(64, 64))
    with (
        calls.channel(servers.address("inpaint")) as inpaint,
        calls.channel(servers.address("postprocess")) as postprocess,
        calls.channel(servers.address("router")) as router,
    ):

        def fill() -> Iterator[Any]:
            request = inpaint_pb2.InpaintRequest(
                image=small,
                mask=images_pb2.Image(encoded=pictures.hole(64, 64, 8, 8)),
                options=inpaint_pb2.InpaintOptions(model="telea"),
            )
            return inpaint_pb2_grpc.InpaintServiceStub(inpaint).Inpaint(request, timeout=300)

        def enlarge() -> Iterator[Any]:
            request = postprocess_pb2.UpscaleRequest(image=small, options=UPSCALER)
            return postprocess_pb2_grpc.PostprocessServiceStub(postprocess).Upscale(request, timeout=300)

        stub = router_pb2_grpc.RouterServiceStub(router)
        erase = calls.inpaint_run(image, pictures.hole(1024, 1024, 420, 420), model)
        step = router_pb2.Step(name="big", upscale=router_pb2.UpscaleStep(options=UPSCALER))
        upscale = router_pb2.RunRequest(
            pipeline=router_pb2.Pipeline(steps=[step]), inputs={"source": images_pb2.Image(encoded=image)}
        )
        list(enlarge())  # loads the network
        erases = [_cancel_to_start(stub, erase, fill) for _ in range(turns)]
        upscales = [_cancel_to_start(stub, upscale, enlarge) for _ in range(turns)]
    return {
        "erase_model": model,
        "erase_p50_ms": median_ms(erases),
        "erase_p95_ms": p95_ms(erases),
        "upscale_model": UPSCALER.model,
        "upscale_p50_ms": median_ms(upscales),
        "upscale_p95_ms": p95_ms(upscales),
    }


def _cancel_to_start(stub: router_pb2_grpc.RouterServiceStub, request: router_pb2.RunRequest, probe: Probe) -> float:
    """Begin a run, let another call wait for its device, cancel the run; return the seconds until the other starts."""
    run: Any = stub.Run(request, timeout=300)
    for response in run:
        if response.event.HasField("progress") and response.event.progress.stage not in ("decode", "encode"):
            break
    return seconds_to_start(probe, run.cancel)


def seconds_to_start(probe: Probe, cancel: Callable[[], object]) -> float:
    """Let a call wait behind another one, cancel that, and return the seconds until the waiting one starts."""
    queued = threading.Event()
    started: list[float] = []

    def wait() -> None:
        for response in probe():
            if response.HasField("queued"):
                queued.set()
            elif response.HasField("started"):
                started.append(time.perf_counter())

    waiter = threading.Thread(target=wait)
    waiter.start()
    queued.wait(timeout=60)
    time.sleep(0.05)  # lets the waiter be decoded, so that only the device is waited for
    began = time.perf_counter()
    cancel()
    waiter.join()
    if started[0] < began:
        raise RuntimeError("the other call was done before it could be cancelled")
    return started[0] - began
