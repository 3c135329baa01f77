"""The server over a real channel on localhost."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from limner.core.codec import Limits, decode, encode
from limner.core.picture import Picture
from limner.runtime.images import picture_from_proto, put_picture
from limner.runtime.server import Server, start
from limner.segment import scene as scenes
from limner.segment.__main__ import build
from limner.segment.config import SegmentConfig
from limner.v1 import images_pb2, models_pb2, models_pb2_grpc, segment_pb2, segment_pb2_grpc
from tests.segment.known import make_scene, overlap

SCENE = make_scene("disc")
X, Y = SCENE.click
ON, OFF = segment_pb2.CLICK_LABEL_POSITIVE, segment_pb2.CLICK_LABEL_NEGATIVE


@pytest_asyncio.fixture
async def server(tmp_path: Any) -> AsyncIterator[Server]:
    config = SegmentConfig(port=0, model_dir=str(tmp_path), max_image_pixels=200_000)
    async with await start("segment", config, build) as running:
        yield running


@pytest_asyncio.fixture
async def stub(server: Server) -> AsyncIterator[segment_pb2_grpc.SegmentServiceStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield segment_pb2_grpc.SegmentServiceStub(channel)


def raw(picture: Picture = SCENE.picture) -> images_pb2.Image:
    image = images_pb2.Image()
    put_picture(image, picture, images_pb2.OutputOptions(format="raw"))
    return image


def asking(*clicks: tuple[float, float, int], boxes: Any = (), **rest: Any) -> segment_pb2.SegmentRequest:
    options = segment_pb2.SegmentOptions(
        clicks=[segment_pb2.Click(x_px=x, y_px=y, label=label) for x, y, label in clicks],  # type: ignore[arg-type]
        boxes=boxes,
    )
    return segment_pb2.SegmentRequest(image=raw(), options=options, **rest)


async def events(call: Any) -> dict[str, Any]:
    """The last event of each kind."""
    return {event.WhichOneof("event"): getattr(event, event.WhichOneof("event")) async for event in call}


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    """Code, message and the fields at fault."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(call)
    fields = []
    status = rpc_status.from_call(caught.value)
    for detail in status.details if status else []:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            fields += [violation.field for violation in bad.field_violations]
    return caught.value.code(), caught.value.details() or "", fields


async def test_a_click_gives_mask_bounds_and_score(stub: segment_pb2_grpc.SegmentServiceStub) -> None:
    seen = await events(stub.Segment(asking((X, Y, ON))))
    result = seen["result"]
    assert result.mask.encoded.startswith(b"\x89PNG")
    mask = decode(result.mask.encoded).pixels[:, :, 0]
    assert overlap(mask, SCENE.mask) > 0.97
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = result.bounds
    assert (box.x_px, box.y_px) == (columns[0], rows[0])
    assert (box.width_px, box.height_px) == (columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    assert 0 < result.score <= 1
    assert seen["started"].placement.device == "cpu"
    assert seen["finished"].model == "grabcut"


async def test_an_unspecified_label_is_positive(stub: segment_pb2_grpc.SegmentServiceStub) -> None:
    seen = await events(stub.Segment(asking((X, Y, 0), output=images_pb2.OutputOptions(format="raw"))))
    mask = picture_from_proto(seen["result"].mask, Limits())
    assert (mask.channels, mask.bit_depth) == (1, 8)
    assert overlap(mask.pixels[:, :, 0], SCENE.mask) > 0.97


async def test_the_second_click_encodes_nothing(
    stub: segment_pb2_grpc.SegmentServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    really = scenes.find_regions
    monkeypatch.setattr(scenes, "find_regions", lambda *args: looks.append(1) or really(*args))
    first = await events(stub.Segment(asking((X, Y, ON))))
    second = await events(stub.Segment(asking((X, Y, ON), (3, 3, OFF))))
    assert not first["result"].embedding_cached
    assert second["result"].embedding_cached
    assert len(looks) == 1


async def test_the_cache_changes_no_result(stub: segment_pb2_grpc.SegmentServiceStub) -> None:
    fresh = await events(stub.Segment(asking((X, Y, ON))))
    cached = await events(stub.Segment(asking((X, Y, ON))))
    assert cached["result"].embedding_cached
    assert fresh["result"].mask == cached["result"].mask


async def test_embedding_prepares_a_click(stub: segment_pb2_grpc.SegmentServiceStub) -> None:
    """And pictures are known by their pixels, however they were sent."""
    request = segment_pb2.EmbedRequest(image=images_pb2.Image(encoded=encode(SCENE.picture)))
    embedded = (await events(stub.Embed(request)))["result"]
    digest = hashlib.sha256(f"{SCENE.picture.width} {SCENE.picture.height} 3 8 ".encode())
    digest.update(SCENE.picture.pixels.tobytes())
    assert embedded.embedding_id == digest.hexdigest()
    assert embedded.size_bytes > 0
    assert not embedded.embedding_cached
    assert (await events(stub.Embed(request)))["result"].embedding_cached
    assert (await events(stub.Segment(asking((X, Y, ON)))))["result"].embedding_cached


async def test_background_removal_gives_a_cutout(stub: segment_pb2_grpc.SegmentServiceStub) -> None:
    request = segment_pb2.RemoveBackgroundRequest(image=images_pb2.Image(encoded=encode(SCENE.picture)))
    seen = await events(stub.RemoveBackground(request))
    picture = decode(seen["result"].image.encoded)
    alpha = picture.alpha()
    assert alpha is not None
    assert overlap(alpha, SCENE.mask) > 0.95
    assert np.array_equal(picture.colour(), SCENE.picture.pixels)
    assert seen["finished"].model == "saliency-grabcut"


async def test_background_removal_gives_a_mask(stub: segment_pb2_grpc.SegmentServiceStub) -> None:
    options = segment_pb2.RemoveBackgroundOptions(result=segment_pb2.BACKGROUND_OUTPUT_MASK)
    seen = await events(stub.RemoveBackground(segment_pb2.RemoveBackgroundRequest(image=raw(), options=options)))
    mask = decode(seen["result"].image.encoded)
    assert mask.channels == 1
    assert overlap(mask.pixels[:, :, 0], SCENE.mask) > 0.95


async def test_sixteen_bits_stay_sixteen(stub: segment_pb2_grpc.SegmentServiceStub) -> None:
    deep = SCENE.picture.with_bit_depth(16)
    seen = await events(stub.RemoveBackground(segment_pb2.RemoveBackgroundRequest(image=raw(deep))))
    result = decode(seen["result"].image.encoded)
    assert result.bit_depth == 16
    assert np.array_equal(result.colour(), deep.pixels)


WIDTH, HEIGHT = SCENE.picture.width, SCENE.picture.height


def box(x: int, y: int, width: int, height: int) -> images_pb2.Box:
    return images_pb2.Box(x_px=x, y_px=y, width_px=width, height_px=height)


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (asking(), ["options.clicks"]),
        (asking((X, Y, OFF)), ["options.clicks"]),
        (asking((WIDTH, Y, ON)), ["options.clicks[0].x_px"]),
        (asking((X, Y, ON), (-0.5, HEIGHT - 0.5, OFF)), ["options.clicks[1].x_px", "options.clicks[1].y_px"]),
        (asking((float("nan"), Y, ON)), ["options.clicks[0].x_px"]),
        (asking((X, Y, 7)), ["options.clicks[0].label"]),
        (asking(*[(X, Y, ON)] * 257), ["options.clicks"]),
        (asking(boxes=[box(0, 0, 5, 5)] * 17), ["options.boxes"]),
        (asking(boxes=[box(0, 0, 0, 5)]), ["options.boxes[0].width_px"]),
        (asking(boxes=[box(WIDTH, 0, 5, 5)]), ["options.boxes[0].x_px"]),
        (asking(boxes=[box(0, HEIGHT - 4, 5, 5)]), ["options.boxes[0].height_px"]),
        (asking((X, Y, ON), output=images_pb2.OutputOptions(format="xcf")), ["output.format"]),
    ],
)
async def test_bad_hints_name_their_fields(
    stub: segment_pb2_grpc.SegmentServiceStub, request_: segment_pb2.SegmentRequest, fields: list[str]
) -> None:
    code, _, named = await refusal(stub.Segment(request_))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert named == fields


async def test_nothing_found_says_where_and_what_to_do(
    stub: segment_pb2_grpc.SegmentServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limner.segment.adapter import Found
    from limner.segment.segmenter import GrabCut

    empty = Found(np.zeros((HEIGHT, WIDTH), np.uint8), None)
    monkeypatch.setattr(GrabCut, "decode", lambda *args: empty)
    code, message, fields = await refusal(stub.Segment(asking((12, 34, ON))))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "nothing found at (12, 34)" in message
    assert "box" in message
    assert fields == ["options.clicks"]


async def test_unknown_models_and_results_are_refused(stub: segment_pb2_grpc.SegmentServiceStub) -> None:
    request = asking((X, Y, ON))
    request.options.model = "sam"
    code, message, _ = await refusal(stub.Segment(request))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "grabcut" in message
    removal = segment_pb2.RemoveBackgroundRequest(image=raw())
    removal.options.result = 9  # type: ignore[assignment]
    code, _, fields = await refusal(stub.RemoveBackground(removal))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields == ["options.result"]


async def test_a_model_of_another_task_is_unknown(stub: segment_pb2_grpc.SegmentServiceStub) -> None:
    request = asking((X, Y, ON))
    request.options.model = "saliency-grabcut"
    assert (await refusal(stub.Segment(request)))[0] is grpc.StatusCode.NOT_FOUND


async def test_pictures_over_the_limit_are_refused(stub: segment_pb2_grpc.SegmentServiceStub) -> None:
    large = Picture(np.zeros((400, 501, 1), np.uint8))
    code, _, fields = await refusal(stub.Embed(segment_pb2.EmbedRequest(image=raw(large))))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert fields == ["image"]


async def test_the_models_are_listed(server: Server) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        listed = await models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest())
    assert {(model.name, model.task) for model in listed.models} == {
        ("grabcut", "segment"),
        ("saliency-grabcut", "remove-background"),
    }
