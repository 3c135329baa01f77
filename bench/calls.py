"""The calls that the benchmarks time, on bare stubs: what any client in any language would pay."""

from __future__ import annotations

import grpc

from limner.v1 import images_pb2, inpaint_pb2, inpaint_pb2_grpc, progress_pb2, router_pb2, router_pb2_grpc

MESSAGE_BYTES = 512 << 20
CHANNEL_OPTIONS = [("grpc.max_send_message_length", MESSAGE_BYTES), ("grpc.max_receive_message_length", MESSAGE_BYTES)]


def channel(address: str) -> grpc.Channel:
    """Return a channel that takes pictures of any size Limner does."""
    return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)


def inpaint_direct(server: grpc.Channel, image: bytes, mask: bytes, model: str) -> tuple[bytes, progress_pb2.Finished]:
    """Fill a hole by calling the inpaint server itself; return the encoded picture and the call's last message."""
    request = inpaint_pb2.InpaintRequest(
        image=images_pb2.Image(encoded=image),
        mask=images_pb2.Image(encoded=mask),
        options=inpaint_pb2.InpaintOptions(model=model),
    )
    picture, finished = b"", progress_pb2.Finished()
    for response in inpaint_pb2_grpc.InpaintServiceStub(server).Inpaint(request, timeout=300):
        if response.HasField("result"):
            picture = response.result.image.encoded
        elif response.HasField("finished"):
            finished = response.finished
    return picture, finished


def inpaint_run(
    image: bytes,
    mask: bytes,
    model: str,
    strategy: inpaint_pb2.InpaintStrategy.ValueType = inpaint_pb2.INPAINT_STRATEGY_AUTO,
) -> router_pb2.RunRequest:
    """Return the Run that does the same through the router."""
    options = inpaint_pb2.InpaintOptions(model=model, strategy=strategy)
    step = router_pb2.Step(name="fill", inpaint=router_pb2.InpaintStep(image="source", mask="mask", options=options))
    return router_pb2.RunRequest(
        pipeline=router_pb2.Pipeline(steps=[step]),
        inputs={"source": images_pb2.Image(encoded=image), "mask": images_pb2.Image(encoded=mask)},
        inline_limit_bytes=MESSAGE_BYTES,
    )


def inpaint_routed(router: grpc.Channel, image: bytes, mask: bytes, model: str) -> tuple[bytes, progress_pb2.Finished]:
    """Fill a hole through the router; return the encoded picture and the step's last message."""
    picture, finished = b"", progress_pb2.Finished()
    for response in router_pb2_grpc.RouterServiceStub(router).Run(inpaint_run(image, mask, model), timeout=300):
        if response.event.HasField("result"):
            picture = response.event.result.image.encoded
        elif response.event.HasField("finished"):
            finished = response.event.finished
    return picture, finished


def seconds_by_stage(finished: progress_pb2.Finished) -> dict[str, float]:
    """Return how long each stage of a call took, in seconds."""
    return {timing.stage: timing.duration.ToTimedelta().total_seconds() for timing in finished.timings}
