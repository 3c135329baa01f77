"""Small pictures, masks and Runs for the end-to-end tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from limner.v1 import images_pb2, inpaint_pb2, router_pb2


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def noise(width: int, height: int) -> bytes:
    return png(np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8))


def hole(width: int, height: int, side: int) -> bytes:
    mask = np.zeros((height, width), dtype=np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    mask[top : top + side, left : left + side] = 255
    return png(mask)


def fill(image: bytes, mask: bytes, model: str | None = None, **fields: object) -> router_pb2.RunRequest:
    """A Run of one step, `fill`."""
    options = inpaint_pb2.InpaintOptions(model=model)
    step = router_pb2.Step(name="fill", inpaint=router_pb2.InpaintStep(mask="mask", options=options))
    return router_pb2.RunRequest(
        pipeline=router_pb2.Pipeline(steps=[step]),
        inputs={"source": images_pb2.Image(encoded=image), "mask": images_pb2.Image(encoded=mask)},
        inline_limit_bytes=64 << 20,
        **fields,
    )


def slow_fill(**fields: object) -> router_pb2.RunRequest:
    """A Run that holds the inpaint server's device for some seconds."""
    return fill(noise(700, 700), hole(700, 700, 260), "patchmatch", **fields)


def quick_fill(**fields: object) -> router_pb2.RunRequest:
    """A Run that is done at once."""
    return fill(noise(64, 64), hole(64, 64, 8), "telea", **fields)
