"""How soon a cancelled call gives the device back: a second call waits behind it and says when it has started."""

from __future__ import annotations

import threading
import time

import grpc

from bench import calls, pictures
from bench.figures import Figures, median_ms, p95_ms
from limner.client.local import LocalServers
from limner.v1 import images_pb2, inpaint_pb2, inpaint_pb2_grpc, router_pb2_grpc


def measure(servers: LocalServers, *, quick: bool, model: str) -> Figures:
    """Return milliseconds from the client's cancel of a Run to the next call's start on the device."""
    image, mask = pictures.photograph(1024, 1024), pictures.hole(1024, 1024, 420, 420)
    small, small_mask = pictures.photograph(64, 64), pictures.hole(64, 64, 8, 8)
    waits = []
    with calls.channel(servers.address("inpaint")) as inpaint, calls.channel(servers.address("router")) as router:
        for _ in range(5 if quick else 25):
            run = router_pb2_grpc.RouterServiceStub(router).Run(calls.inpaint_run(image, mask, model), timeout=300)
            for response in run:
                if response.event.HasField("progress") and response.event.progress.stage != "decode":
                    break
            waits.append(_wait_for_device(run, inpaint, small, small_mask))
    return {"model": model, "cancel_to_free_p50_ms": median_ms(waits), "cancel_to_free_p95_ms": p95_ms(waits)}


def _wait_for_device(run: grpc.Call, inpaint: grpc.Channel, image: bytes, mask: bytes) -> float:
    """Cancel the run that holds the device once another call waits for it; return the seconds until that one starts."""
    queued, started = threading.Event(), []

    def wait() -> None:
        request = inpaint_pb2.InpaintRequest(
            image=images_pb2.Image(encoded=image),
            mask=images_pb2.Image(encoded=mask),
            options=inpaint_pb2.InpaintOptions(model="telea"),
        )
        for response in inpaint_pb2_grpc.InpaintServiceStub(inpaint).Inpaint(request, timeout=300):
            if response.HasField("queued"):
                queued.set()
            elif response.HasField("started"):
                started.append(time.perf_counter())

    waiter = threading.Thread(target=wait)
    waiter.start()
    queued.wait(timeout=60)
    time.sleep(0.05)  # lets the waiter's picture be decoded, so that only the device is waited for
    began = time.perf_counter()
    run.cancel()
    waiter.join()
    return max(0.0, started[0] - began)
