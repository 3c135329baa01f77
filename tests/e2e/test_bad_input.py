"""What is wrong is refused with its code, reason, field and mend, through the router, and the servers go on."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import grpc
import pytest

from limner.client import Client, Image, LocalServers, RequestFailed
from limner.v1 import inpaint_pb2, postprocess_pb2, router_pb2, segment_pb2
from tests.e2e import scenes

IMAGE, MASK = scenes.noise(64, 48), scenes.hole(64, 48, 10)


def bomb() -> bytes:
    """A PNG of 100 bytes that says it has 2.5 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def run_of(*steps: router_pb2.Step, **inputs: bytes | Image) -> tuple[router_pb2.Pipeline, dict[str, bytes | Image]]:
    return router_pb2.Pipeline(steps=steps), inputs


def inpaint(image: bytes | Image = IMAGE, mask: bytes | Image = MASK, **options: object):
    step = router_pb2.InpaintStep(mask="mask", options=inpaint_pb2.InpaintOptions(**options))
    return run_of(router_pb2.Step(name="fill", inpaint=step), source=image, mask=mask)


def segment(*clicks: tuple[float, float, int]):
    marks = [segment_pb2.Click(x_px=x, y_px=y, label=label) for x, y, label in clicks]
    step = router_pb2.SegmentStep(options=segment_pb2.SegmentOptions(clicks=marks))
    return run_of(router_pb2.Step(name="object", segment=step), source=IMAGE)


def upscale(scale: float):
    step = router_pb2.UpscaleStep(options=postprocess_pb2.UpscaleOptions(model="lanczos", scale=scale))
    return run_of(router_pb2.Step(name="big", upscale=step), source=IMAGE)


def raw(width: int, height: int, data: bytes) -> Image:
    image = Image()
    image.raw.width_px, image.raw.height_px = width, height
    image.raw.channel_count, image.raw.bit_depth, image.raw.data = 3, 8, data
    return image


def cycle():
    first = router_pb2.Step(name="a", upscale=router_pb2.UpscaleStep(image="b"))
    second = router_pb2.Step(name="b", upscale=router_pb2.UpscaleStep(image="a"))
    return run_of(first, second, source=IMAGE)


def dangling():
    return run_of(router_pb2.Step(name="a", upscale=router_pb2.UpscaleStep(image="nobody")), source=IMAGE)


STEP = "pipeline.steps[0].inpaint."
CASES = {
    "bytes that are no image": (lambda: inpaint(b"not a picture"), "INVALID_ARGUMENT", "BAD_IMAGE", "source"),
    "a truncated file": (lambda: inpaint(IMAGE[: len(IMAGE) // 2]), "INVALID_ARGUMENT", "BAD_IMAGE", "source"),
    "a decompression bomb": (lambda: inpaint(bomb()), "INVALID_ARGUMENT", "IMAGE_TOO_LARGE", "source"),
    "no width": (lambda: inpaint(raw(0, 0, b"")), "INVALID_ARGUMENT", "", "source"),
    "too few raw bytes": (lambda: inpaint(raw(64, 48, b"123")), "INVALID_ARGUMENT", "BAD_IMAGE", "source"),
    "a mask of another size": (
        lambda: inpaint(mask=scenes.hole(32, 32, 8)),
        "INVALID_ARGUMENT",
        "BAD_MASK",
        "mask",
    ),
    "an empty mask": (lambda: inpaint(mask=scenes.hole(64, 48, 0)), "INVALID_ARGUMENT", "BAD_MASK", "mask"),
    "an unknown model": (lambda: inpaint(model="lama2"), "NOT_FOUND", "UNKNOWN_MODEL", ""),
    "a number out of range": (
        lambda: inpaint(model="telea", radius_px=0.0),
        "INVALID_ARGUMENT",
        "BAD_ARGUMENT",
        STEP + "options.radius_px",
    ),
    "not a number": (
        lambda: inpaint(model="telea", radius_px=float("nan")),
        "INVALID_ARGUMENT",
        "BAD_ARGUMENT",
        STEP + "options.radius_px",
    ),
    "an unknown enum value": (lambda: inpaint(strategy=99), "INVALID_ARGUMENT", "", STEP + "options.strategy"),
    "a click outside": (
        lambda: segment((900.0, 10.0, 1)),
        "INVALID_ARGUMENT",
        "BAD_ARGUMENT",
        "pipeline.steps[0].segment.options.clicks[0].x_px",
    ),
    "only negative clicks": (
        lambda: segment((9.0, 10.0, 2)),
        "INVALID_ARGUMENT",
        "BAD_ARGUMENT",
        "pipeline.steps[0].segment.options.clicks",
    ),
    "a scale out of range": (
        lambda: upscale(17.0),
        "INVALID_ARGUMENT",
        "BAD_ARGUMENT",
        "pipeline.steps[0].upscale.options.scale",
    ),
    "a cycle": (cycle, "INVALID_ARGUMENT", "BAD_PIPELINE", "pipeline.steps"),
    "a dangling name": (dangling, "INVALID_ARGUMENT", "BAD_PIPELINE", "pipeline.steps[0].upscale.image"),
    "no steps": (lambda: run_of(source=IMAGE), "INVALID_ARGUMENT", "BAD_PIPELINE", "pipeline.steps"),
    "a blob that is gone": (lambda: inpaint(Image(blob_id="0" * 64)), None, None, None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_named_with_its_mend(client: Client, name: str) -> None:
    make, code, reason, field = CASES[name]
    error = failure(client, make)
    if code is None:  # a blob that is gone: found while checking the pipeline, or when the step wants it
        assert error.reason in ("BLOB_NOT_FOUND", "BAD_PIPELINE")
        assert "upload" in str(error)
        return
    assert error.code is grpc.StatusCode[code]
    assert not reason or error.reason == reason
    assert len(error.message) > 15
    if field:
        assert any(field in violation.field for violation in error.violations), error.violations


def test_an_unknown_model_tells_the_names_that_exist(client: Client) -> None:
    error = failure(client, lambda: inpaint(model="lama2"))
    assert "telea" in error.metadata["available"]
    assert "telea" in error.message


def test_every_fault_of_a_pipeline_is_told_at_once(client: Client) -> None:
    def make():
        bad = router_pb2.Step(name="bad name!", upscale=router_pb2.UpscaleStep(image="nobody"))
        return run_of(bad, router_pb2.Step(name="empty"), source=IMAGE)

    fields = {violation.field for violation in failure(client, make).violations}
    assert {"pipeline.steps[0].name", "pipeline.steps[0].upscale.image"} <= fields
    assert any(field.startswith("pipeline.steps[1]") for field in fields)


def test_an_expired_deadline_is_a_deadline(client: Client) -> None:
    pipeline, inputs = inpaint()
    with pytest.raises(RequestFailed) as caught, client.run(pipeline, inputs, timeout=0.001) as run:
        run.wait()
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_message_over_the_limit_is_refused_with_the_way_out(tmp_path) -> None:
    environment = {"LIMNER_ROUTER_MAX_MESSAGE_BYTES": str(1 << 20), "LIMNER_ROUTER_BLOB_DIR": str(tmp_path)}
    with (
        LocalServers(services=("router",), environment=environment) as servers,
        Client(servers.address("router"), timeout=20) as client,
        client.run(*inpaint(Image(encoded=b"x" * (3 << 20)))) as run,
        pytest.raises(RequestFailed) as caught,
    ):
        run.wait()
    assert caught.value.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)
    assert "larger" in caught.value.message or "limit" in caught.value.message or "max" in caught.value.message


def failure(client: Client, make: Callable) -> RequestFailed:
    """The error of a run that must fail; and after it the servers still do what is right."""
    pipeline, inputs = make()
    with pytest.raises(RequestFailed) as caught, client.run(pipeline, inputs) as run:
        run.wait()
    good, pictures = inpaint(model="telea")
    with client.run(good, pictures) as run:
        assert run.wait()["fill"]
    return caught.value
