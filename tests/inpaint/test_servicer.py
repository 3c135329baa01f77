"""The server over a localhost channel, with its real models."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from limner.inpaint.models import MODELS
from limner.v1 import images_pb2, inpaint_pb2, inpaint_pb2_grpc, models_pb2, models_pb2_grpc

HOLE = np.s_[20:30, 30:45]


def png(pixels: np.ndarray) -> images_pb2.Image:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return images_pb2.Image(encoded=buffer.getvalue())


def raw(pixels: np.ndarray) -> images_pb2.Image:
    height, width, channels = pixels.shape
    return images_pb2.Image(
        raw=images_pb2.RawImage(
            width_px=width,
            height_px=height,
            channel_count=channels,
            bit_depth=8 * pixels.dtype.itemsize,
            data=pixels.tobytes(),
        )
    )


def photograph(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([120 + 80 * np.sin(x / 7), 120 + 80 * np.cos(y / 5), x * 255 / width], axis=2).astype(np.uint8)


def mask(height: int = 60, width: int = 80) -> np.ndarray:
    pixels = np.zeros((height, width), np.uint8)
    pixels[HOLE] = 255
    return pixels


def request(**options: Any) -> inpaint_pb2.InpaintRequest:
    return inpaint_pb2.InpaintRequest(
        image=png(photograph()), mask=png(mask()), options=inpaint_pb2.InpaintOptions(**options)
    )


async def ask(channel: grpc.aio.Channel, asked: inpaint_pb2.InpaintRequest) -> dict[str, list[Any]]:
    """Return the call's events by name."""
    events: dict[str, list[Any]] = {}
    async for response in inpaint_pb2_grpc.InpaintServiceStub(channel).Inpaint(asked):
        name = str(response.WhichOneof("event"))
        events.setdefault(name, []).append(getattr(response, name))
    return events


async def refused(
    channel: grpc.aio.Channel, asked: inpaint_pb2.InpaintRequest
) -> tuple[grpc.StatusCode, str, str, list[str]]:
    """Return code, reason, message and violated fields of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(channel, asked)
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info, fields = error_details_pb2.ErrorInfo(), []
    for detail in status.details:
        detail.Unpack(info)
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            fields = [violation.field for violation in bad.field_violations]
    return caught.value.code(), info.reason, caught.value.details() or "", fields


@pytest.mark.parametrize("model", ["limner-erase", "patchmatch", "fsr", "telea", "navier-stokes"])
async def test_a_hole_is_filled_and_the_rest_stays(channel: grpc.aio.Channel, model: str) -> None:
    events = await ask(channel, request(model=model, seed=7))
    assert list(events)[-2:] == ["result", "finished"]
    filled = np.asarray(Image.open(io.BytesIO(events["result"][0].image.encoded)))
    outside = mask() == 0
    assert (filled[outside] == photograph()[outside]).all()
    assert np.abs(filled[HOLE].astype(int) - photograph()[HOLE]).mean() < 30
    (finished,) = events["finished"]
    assert (finished.model, finished.seed) == (model, 7)
    assert "inpaint" in [timing.stage for timing in finished.timings]


async def test_without_lama_the_default_is_patchmatch_and_the_reason_tells_why(channel: grpc.aio.Channel) -> None:
    events = await ask(channel, request())
    assert events["finished"][0].model == "patchmatch"
    placement = events["started"][0].placement
    assert placement.device == "cpu"
    assert "as long as lama is not installed (limner models pull lama)" in placement.reason
    assert "auto: original" in placement.reason


async def test_lama_is_the_default_as_soon_as_it_is_installed(channel: grpc.aio.Channel, tmp_path: Path) -> None:
    (tmp_path / "lama").mkdir()
    (tmp_path / "lama" / "network.onnx").write_bytes(b"")
    (tmp_path / "lama" / "card.json").write_text('{"files": {"network.onnx": {"digest": "sha256:1"}}}')
    listed = await models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest())
    assert [model.name for model in listed.models if model.default] == ["lama"]


async def test_raw_sixteen_bits_with_alpha_come_back_as_they_went(channel: grpc.aio.Channel) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (60, 80, 4), dtype=np.uint16)
    asked = inpaint_pb2.InpaintRequest(
        image=raw(pixels), mask=raw(mask()[:, :, None]), output=images_pb2.OutputOptions(format="raw")
    )
    result = (await ask(channel, asked))["result"][0].image.raw
    assert (result.bit_depth, result.channel_count) == (16, 4)
    filled = np.frombuffer(result.data, "<u2").reshape(pixels.shape)
    outside = mask() == 0
    assert (filled[outside] == pixels[outside]).all()
    assert (filled[:, :, 3] == pixels[:, :, 3]).all()
    assert (filled[HOLE] != pixels[HOLE]).any()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"radius_px": 0.5}, "options.radius_px"),
        ({"radius_px": float("nan")}, "options.radius_px"),
        ({"crop_margin_px": 4097}, "options.crop_margin_px"),
        ({"resize_limit_px": 63}, "options.resize_limit_px"),
        ({"strategy": 99}, "options.strategy"),
    ],
)
async def test_values_out_of_range_are_refused_by_name(
    channel: grpc.aio.Channel, options: dict[str, Any], field: str
) -> None:
    code, reason, message, fields = await refused(channel, request(**options))
    assert (code, reason, fields) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_ARGUMENT", [field])
    assert "give" in message


async def test_the_edges_of_the_ranges_are_accepted(channel: grpc.aio.Channel) -> None:
    for options in (
        {"radius_px": 1, "crop_margin_px": 0, "strategy": inpaint_pb2.INPAINT_STRATEGY_CROP},
        {"radius_px": 100, "resize_limit_px": 64, "strategy": inpaint_pb2.INPAINT_STRATEGY_RESIZE},
        {"crop_margin_px": 4096, "resize_limit_px": 8192, "strategy": inpaint_pb2.INPAINT_STRATEGY_ORIGINAL},
    ):
        assert "result" in await ask(channel, request(model="telea", **options))


async def test_an_unknown_model_is_answered_with_those_that_exist(channel: grpc.aio.Channel) -> None:
    code, reason, message, _ = await refused(channel, request(model="lama2"))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")
    assert ", ".join(sorted(MODELS)) in message


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (mask(61, 80), "the mask is 80 × 61"),
        (np.zeros((60, 80), np.uint8), "all black"),
        (np.full((60, 80), 255, np.uint8), "covers the whole picture"),
    ],
)
async def test_masks_of_another_size_or_of_one_colour_are_refused(
    channel: grpc.aio.Channel, pixels: np.ndarray, said: str
) -> None:
    asked = request()
    asked.mask.CopyFrom(png(pixels))
    code, reason, message, fields = await refused(channel, asked)
    assert (code, reason, fields) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_MASK", ["mask"])
    assert said in message


async def test_an_output_that_cannot_be_written_is_refused_before_the_work(channel: grpc.aio.Channel) -> None:
    asked = request()
    asked.output.format = "xcf"
    code, reason, _, fields = await refused(channel, asked)
    assert (code, reason, fields) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_ARGUMENT", ["output.format"])


async def test_a_missing_mask_is_refused_and_the_server_goes_on(channel: grpc.aio.Channel) -> None:
    asked = request()
    asked.ClearField("mask")
    _, reason, _, fields = await refused(channel, asked)
    assert (reason, fields) == ("BAD_ARGUMENT", ["mask"])
    assert "result" in await ask(channel, request(model="telea"))


async def test_cancelling_a_long_fill_frees_the_device_at_once(channel: grpc.aio.Channel) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    hole = np.zeros((600, 600), np.uint8)
    hole[100:500, 100:500] = 255
    long = inpaint_pb2.InpaintRequest(image=raw(noise), mask=raw(hole[:, :, None]))
    call = inpaint_pb2_grpc.InpaintServiceStub(channel).Inpaint(long)
    async for response in call:
        if response.HasField("progress") and response.progress.stage == "inpaint":
            break
    await asyncio.sleep(0.3)
    began = time.monotonic()
    call.cancel()
    await ask(channel, request(model="telea"))
    assert time.monotonic() - began < 2  # the fill would take many seconds


async def test_the_models_are_listed_with_licence_and_source(channel: grpc.aio.Channel) -> None:
    listed = await models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest())
    assert [model.name for model in listed.models] == sorted(MODELS)
    assert {"fsr", "lama", "patchmatch"} <= set(MODELS)
    assert all(model.licence and model.source and model.task == "inpaint" for model in listed.models)
    assert [model.name for model in listed.models if model.default] == ["patchmatch"]
