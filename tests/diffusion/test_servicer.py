"""Requests to the engine and back, over a localhost channel, with a model that shows what it was given."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from limner.core.card import ModelCard
from limner.core.codec import Limits
from limner.core.errors import BadArgument, UnknownModel
from limner.core.placement import Placement
from limner.diffusion.engine import Engine
from limner.diffusion.model import Pixels, Request
from limner.diffusion.models import MODELS
from limner.diffusion.servicer import DiffusionServicer
from limner.diffusion.variant import Task, Variant
from limner.runtime.config import ServerConfig
from limner.runtime.device import Device
from limner.runtime.job import Job
from limner.runtime.server import Server, start
from limner.v1 import diffusion_pb2 as pb
from limner.v1 import diffusion_pb2_grpc, images_pb2

TINY = replace(
    MODELS["sd3.5-medium"].VARIANT,
    name="tiny",
    width=64,
    height=48,
    min_pixels=32 * 32,
    max_pixels=256 * 256,
    max_side=256,
    step_count=3,
    guidance_scale=4.5,
)
TURBO = replace(MODELS["sd3.5-large-turbo"].VARIANT, name="turbo", width=64, height=64, min_pixels=1024)
OLD = replace(MODELS["sd1.5-inpaint"].VARIANT, name="old", width=64, height=64, min_pixels=1024)
VARIANTS = {variant.name: variant for variant in (TINY, TURBO, OLD)}
NOTHING = images_pb2.Image()


@dataclass
class FakeRow:
    request: Request
    index: int
    step_count: int
    bucket: Hashable = "one"
    size: int = 1
    cost: float = 1.0
    step: int = 0

    def close(self) -> None:
        pass


class FakeModel:
    """Its pictures are the negative of what it was given where it may change it, else grey of the seed."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def prepare(self, request: Request, check: Callable[[], None]) -> Sequence[FakeRow]:
        if "too long" in request.parameters.negative_prompt:
            message = "options.negative_prompt has 300 tokens"
            raise BadArgument(message, field="options.negative_prompt")
        self.requests.append(request)
        count = request.parameters.image_count
        return [FakeRow(request, index, request.parameters.step_count) for index in range(count)]

    def most_at_once(self, bucket: Hashable) -> int:
        return 8

    def advance(self, rows: Sequence[FakeRow]) -> Sequence[Exception | None]:
        for row in rows:
            row.step += 1
        return [None] * len(rows)

    def preview(self, row: FakeRow) -> Callable[[], Pixels]:
        width, height = row.request.parameters.width // 8, row.request.parameters.height // 8
        return lambda: np.full((height, width, 3), 99, np.uint8)

    def decode(self, row: FakeRow) -> Pixels:
        parameters = row.request.parameters
        if row.request.image is None:
            return np.full((parameters.height, parameters.width, 3), (parameters.seed + row.index) % 256, np.uint8)
        assert row.request.image.shape == (parameters.height, parameters.width, 3)
        return 255 - row.request.image


class FakeModels:
    """The model under three names, and a LoRA."""

    def __init__(self) -> None:
        self.model = FakeModel()

    def lease(self, name: str, job: Job) -> FakeModels:
        return self

    def close(self) -> None:
        pass

    def model_for(self, name: str | None, task: Task) -> str:
        found = name or "tiny"
        if found not in VARIANTS or task not in VARIANTS[found].tasks:
            raise UnknownModel(found, available=VARIANTS)
        return found

    def variant(self, name: str) -> Variant:
        return VARIANTS[name]

    def cards(self, task: str | None = None) -> list[ModelCard]:
        return [ModelCard("ink", "lora", "", "", "")]

    def placement(self, name: str) -> Placement:
        return Placement("cpu", "fp32", "torch", "the plan")

    def digest(self, name: str) -> str:
        return "abc"


@pytest.fixture
async def models() -> FakeModels:
    return FakeModels()


@pytest.fixture
async def stub(models: FakeModels) -> AsyncIterator[diffusion_pb2_grpc.DiffusionServiceStub]:
    async def build(server: Server, config: ServerConfig) -> None:
        engine, device = Engine(models, max_active=8), Device("cpu")
        servicer = DiffusionServicer(models, engine, device, Limits(1 << 24, 100_000), max_result_bytes=1 << 20)
        server.add(diffusion_pb2_grpc.add_DiffusionServiceServicer_to_server, servicer, "limner.v1.DiffusionService")

        async def close() -> None:
            device.close()
            engine.close()

        server.on_stop(close)

    async with (
        await start("diffusion", ServerConfig(), build) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield diffusion_pb2_grpc.DiffusionServiceStub(channel)


def png(pixels: np.ndarray) -> images_pb2.Image:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return images_pb2.Image(encoded=buffer.getvalue())


def read(image: images_pb2.Image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.encoded)))


def photograph(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([120 + 80 * np.sin(x / 7), 120 + 80 * np.cos(y / 5), x * 255 / width], axis=2).astype(np.uint8)


def mask(height: int = 60, width: int = 80) -> np.ndarray:
    pixels = np.zeros((height, width), np.uint8)
    pixels[20:30, 30:45] = 255
    return pixels


async def ask(call: AsyncIterator[Any]) -> dict[str, list[Any]]:
    """Return the call's events by name."""
    events: dict[str, list[Any]] = {}
    async for response in call:
        name = str(response.WhichOneof("event"))
        events.setdefault(name, []).append(getattr(response, name))
    return events


async def refused(call: AsyncIterator[Any]) -> tuple[str, str, list[str], dict[str, str]]:
    """Return reason, message, violated fields and metadata of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(call)
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info, fields = error_details_pb2.ErrorInfo(), []
    for detail in status.details:
        detail.Unpack(info)
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            fields = [violation.field for violation in bad.field_violations]
    return info.reason, caught.value.details() or "", fields, dict(info.metadata)


async def test_pictures_are_made_and_what_they_were_made_from_is_told(stub, models):
    options = pb.GenerateOptions(seed=7, image_count=3)
    events = await ask(stub.Generate(pb.GenerateRequest(prompt="a red apple", options=options)))
    assert list(events)[-2:] == ["result", "finished"]
    (result,), (finished,) = events["result"], events["finished"]
    pictures = [read(image) for image in (result.image, *result.more_images)]
    assert [int(picture[0, 0, 0]) for picture in pictures] == [7, 8, 9]
    assert pictures[0].shape == (48, 64, 3)
    assert (finished.seed, finished.model, finished.model_digest) == (7, "tiny", "abc")
    assert dict(finished.parameters) == {
        "prompt": "a red apple",
        "width_px": "64",
        "height_px": "48",
        "step_count": "3",
        "guidance_scale": "4.5",
        "sampler": "dpmpp-2m",
        "schedule_shift": "3",
        "text_length": "256",
        "image_count": "3",
    }
    assert events["started"][0].placement.reason == "tiny: the plan"
    assert "preview" not in events
    parameters = models.model.requests[0].parameters
    assert (parameters.seed, parameters.strength, parameters.skip_layers, parameters.loras) == (7, 1.0, None, ())


async def test_everything_that_can_be_asked_for_reaches_the_model_and_is_told(stub, models):
    options = pb.GenerateOptions(
        model="tiny",
        negative_prompt="fog",
        width_px=96,
        height_px=32,
        step_count=5,
        guidance_scale=2,
        sampler="heun",
        schedule_shift=1.5,
        text_length=77,
        truncate_prompt=True,
        skip_layer_guidance=pb.SkipLayerGuidance(layers=[3, 1]),
        loras=[pb.Lora(name="ink"), pb.Lora(name="ink", scale=-0.5)],
        step_cache=pb.StepCache(order=2),
        weight=3,
    )
    events = await ask(stub.Generate(pb.GenerateRequest(prompt="a tree", options=options)))
    told = events["finished"][0].parameters
    assert json.loads(told["loras"]) == [{"name": "ink", "scale": 1.0}, {"name": "ink", "scale": -0.5}]
    assert json.loads(told["skip_layer_guidance"]) == {"scale": 2.5, "layers": [1, 3], "start": 0.01, "stop": 0.2}
    assert json.loads(told["step_cache"]) == {"interval": 2, "order": 2, "warm_up": 3}
    assert (told["truncate_prompt"], told["schedule_shift"], told["sampler"]) == ("true", "1.5", "heun")
    asked = models.model.requests[0].parameters
    assert (asked.width, asked.height, asked.step_count, asked.guidance_scale) == (96, 32, 5, 2.0)
    assert (asked.negative_prompt, asked.shift, asked.text_length, asked.truncate_prompt) == ("fog", 1.5, 77, True)
    assert [lora.scale for lora in asked.loras] == [1.0, -0.5]


async def test_previews_come_for_each_picture_if_they_are_asked_for(stub):
    options = pb.GenerateOptions(image_count=2)
    events = await ask(stub.Generate(pb.GenerateRequest(prompt="x", options=options, previews=True)))
    previews = events["preview"]
    assert {preview.image_index for preview in previews} == {0, 1}
    shown = read(previews[0].image)
    assert shown.shape == (6, 8, 3)
    assert np.abs(shown.astype(int) - 99).max() < 4


async def test_what_is_masked_is_made_anew_and_the_rest_keeps_its_bits(stub, models):
    picture, hole = photograph(), mask()
    alpha = np.dstack([picture, np.full(hole.shape, 200, np.uint8)])
    request = pb.EditRequest(image=png(alpha), mask=png(hole), prompt="a door")
    events = await ask(stub.Edit(request))
    edited = read(events["result"][0].image)
    assert edited.shape == alpha.shape
    assert (edited[hole == 0] == alpha[hole == 0]).all()
    assert (edited[hole > 0][:, 3] == 200).all()
    assert np.abs(edited[hole > 0][:, :3].astype(int) - (255 - picture[hole > 0])).max() <= 1
    told = events["finished"][0].parameters
    assert (told["strength"], told["prompt"]) == ("1", "a door")
    assert "the model sees" in events["started"][0].placement.reason
    assert models.model.requests[0].mask is not None


async def test_without_a_mask_the_whole_picture_is_changed_as_far_as_strength_says(stub, models):
    picture = photograph(61, 83)
    events = await ask(stub.Edit(pb.EditRequest(image=png(picture))))
    edited = read(events["result"][0].image)
    assert np.abs(edited.astype(int) - (255 - picture)).max() <= 1
    assert events["finished"][0].parameters["strength"] == "0.6"
    assert models.model.requests[0].mask is None
    assert models.model.requests[0].parameters.strength == 0.6


async def test_a_picture_is_extended(stub, models):
    picture = photograph()
    options = pb.OutpaintOptions(left_px=20, bottom_px=40, feather_px=4)
    events = await ask(stub.Outpaint(pb.OutpaintRequest(image=png(picture), options=options, previews=True)))
    extended = read(events["result"][0].image)
    assert extended.shape == (100, 100, 3)
    assert (extended[:56, 24:] == picture[:56, 4:]).all()
    told = events["finished"][0].parameters
    assert [told[name] for name in ("left_px", "top_px", "bottom_px", "feather_px", "strength")] == [
        "20",
        "0",
        "40",
        "4",
        "1",
    ]
    frame = read(events["preview"][0].image)
    assert frame.shape[:2] == (12, 12)  # an eighth of 100 × 100; the model works at 112 × 112


ASK = "a picture"
GENERATE_FAULTS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "size": ({"width_px": 100}, ["width_px"], "nearest is 96 × 48"),
    "height": ({"height_px": 50}, ["height_px"], "multiples of 16"),
    "too many pixels": ({"width_px": 256, "height_px": 272}, ["width_px"], "nearest is 2"),
    "no width": ({"width_px": 0}, ["width_px"], "give 1 to"),
    "steps": ({"step_count": 1001}, ["step_count"], "give 1 to 1000"),
    "no steps": ({"step_count": 0}, ["step_count"], "give 1 to 1000"),
    "guidance": ({"guidance_scale": 0.5}, ["guidance_scale"], "give 1 to 50"),
    "no number": ({"guidance_scale": float("nan")}, ["guidance_scale"], "is nan"),
    "count": ({"image_count": 17}, ["image_count"], "give 1 to 16"),
    "sampler": ({"sampler": "eular"}, ["sampler"], "did you mean 'euler'"),
    "turbo": ({"sampler": "turbo", "model": "turbo", "step_count": 5}, ["step_count"], "has 4 steps"),
    "turbo's shift": (
        {"sampler": "turbo", "model": "turbo", "schedule_shift": 2, "width_px": 64},
        ["schedule_shift"],
        "turbo has 3",
    ),
    "turbo of others": ({"sampler": "turbo"}, ["sampler"], "tiny takes: dpmpp-2m"),
    "shift": ({"schedule_shift": 0.0}, ["schedule_shift"], "give 0.1 to 20"),
    "text length": ({"text_length": 513}, ["text_length"], "give 16 to 512"),
    "layers": (
        {"skip_layer_guidance": pb.SkipLayerGuidance(layers=[24])},
        ["skip_layer_guidance.layers"],
        "has the layers 0 to 23",
    ),
    "order of start and stop": (
        {"skip_layer_guidance": pb.SkipLayerGuidance(start=0.5)},
        ["skip_layer_guidance.stop"],
        "give more",
    ),
    "skip scale": (
        {"skip_layer_guidance": pb.SkipLayerGuidance(scale=0)},
        ["skip_layer_guidance.scale"],
        "more than 0",
    ),
    "cache": ({"step_cache": pb.StepCache(interval=1, order=3)}, ["step_cache.interval", "step_cache.order"], "2 to 8"),
    "loras": ({"loras": [pb.Lora(name="ink")] * 9}, ["loras"], "at most 8"),
    "lora scale": ({"loras": [pb.Lora(name="ink", scale=11)]}, ["loras[0].scale"], "-10 to 10"),
    "lora name": ({"loras": [pb.Lora()]}, ["loras[0].name"], "missing"),
    "preview interval": ({"preview_interval": 0}, ["preview_interval"], "give 1 to 1000"),
    "weight": ({"weight": 11}, ["weight"], "give 0.1 to 10"),
    "seed": ({"seed": 2**64 - 1, "image_count": 2}, ["seed"], "2^64"),
    "prompt": ({"negative_prompt": "x" * 40_000}, ["negative_prompt"], "40000 characters"),
    "far out": ({"width_px": 20_000, "height_px": 8}, ["width_px"], "is 20000; give 1 to 16384"),
    "sampler in capitals": ({"sampler": "Euler"}, ["sampler"], "did you mean 'euler'?"),
    "several": ({"step_count": 0, "weight": 0, "sampler": "no"}, ["step_count", "weight", "sampler"], "sampler"),
}


@pytest.mark.parametrize("name", GENERATE_FAULTS)
async def test_what_the_model_does_not_take_is_refused_by_name(stub, models, name):
    options, fields, words = GENERATE_FAULTS[name]
    reason, message, violated, _ = await refused(
        stub.Generate(pb.GenerateRequest(prompt=ASK, options=pb.GenerateOptions(**options)))
    )
    assert reason == "BAD_ARGUMENT"
    assert violated == [f"options.{field}" for field in fields]
    assert words in message
    assert not models.model.requests


async def test_the_nearest_size_is_in_the_metadata(stub):
    options = pb.GenerateOptions(width_px=1024, height_px=1024)
    *_, metadata = await refused(stub.Generate(pb.GenerateRequest(prompt=ASK, options=options)))
    assert (metadata["nearest_width_px"], metadata["nearest_height_px"]) == ("256", "256")


async def test_what_is_for_sd3_alone_is_refused_by_others(stub):
    options = pb.GenerateOptions(
        model="old", text_length=100, loras=[pb.Lora(name="ink")], step_cache=pb.StepCache(), schedule_shift=2
    )
    request = pb.EditRequest(image=png(photograph()), mask=png(mask()), options=pb.EditOptions(generate=options))
    _, _, violated, _ = await refused(stub.Edit(request))
    assert sorted(violated) == [
        f"options.generate.{name}" for name in ("loras", "schedule_shift", "step_cache", "text_length")
    ]


@pytest.mark.parametrize(
    ("request_", "reason", "fields", "words"),
    [
        (pb.GenerateRequest(), "BAD_ARGUMENT", ["prompt"], "missing"),
        (
            pb.GenerateRequest(prompt=ASK, options=pb.GenerateOptions(model="none")),
            "UNKNOWN_MODEL",
            [],
            "there are: old, tiny, turbo",
        ),
        (
            pb.GenerateRequest(prompt=ASK, options=pb.GenerateOptions(loras=[pb.Lora(name="oil")])),
            "UNKNOWN_MODEL",
            [],
            "no LoRA 'oil' here; there are: ink",
        ),
        (
            pb.GenerateRequest(prompt=ASK, output=images_pb2.OutputOptions(format="gif87")),
            "BAD_ARGUMENT",
            ["output.format"],
            "gif87",
        ),
        (pb.EditRequest(mask=png(mask())), "BAD_ARGUMENT", ["image"], "missing"),
        (pb.EditRequest(image=images_pb2.Image(encoded=b"nothing")), "BAD_IMAGE", ["image"], "image"),
        (pb.EditRequest(image=png(photograph()), mask=png(mask() * 0)), "BAD_MASK", ["mask"], "black"),
        (pb.EditRequest(image=png(photograph()), mask=png(mask(9, 9))), "BAD_MASK", ["mask"], "9 × 9"),
        (
            pb.EditRequest(image=png(photograph()), options=pb.EditOptions(strength=0, crop_margin_px=5000)),
            "BAD_ARGUMENT",
            ["options.strength", "options.crop_margin_px"],
            "more than 0, up to 1",
        ),
        (
            pb.EditRequest(image=png(photograph()), options=pb.EditOptions(strength=float("nan"))),
            "BAD_ARGUMENT",
            ["options.strength"],
            "is nan; give more than 0, up to 1",
        ),
        (
            pb.EditRequest(image=png(photograph()), options=pb.EditOptions(generate=pb.GenerateOptions(width_px=100))),
            "BAD_ARGUMENT",
            ["options.generate.width_px"],
            "nearest",
        ),
        (
            pb.EditRequest(
                image=png(photograph()),
                mask=png(mask()),
                options=pb.EditOptions(strength=0.01, generate=pb.GenerateOptions(model="old")),
            ),
            "BAD_ARGUMENT",
            ["options.strength"],
            "give at least 0.02",
        ),
        (pb.OutpaintRequest(image=png(photograph())), "BAD_ARGUMENT", ["options"], "left_px"),
        (
            pb.OutpaintRequest(image=png(photograph()), options=pb.OutpaintOptions(left_px=5000)),
            "BAD_ARGUMENT",
            ["options.left_px"],
            "0 to 4096",
        ),
        (
            pb.OutpaintRequest(image=png(photograph()), options=pb.OutpaintOptions(left_px=4000)),
            "BAD_ARGUMENT",
            ["options"],
            "at most 100000",
        ),
        (
            pb.EditRequest(
                image=png(photograph(250, 400)),
                options=pb.EditOptions(generate=pb.GenerateOptions(image_count=4)),
            ),
            "BAD_ARGUMENT",
            ["options.generate.image_count"],
            "at most 3",
        ),
    ],
)
async def test_bad_requests_are_refused_by_name(stub, models, request_, reason, fields, words):
    method = {pb.GenerateRequest: stub.Generate, pb.EditRequest: stub.Edit, pb.OutpaintRequest: stub.Outpaint}
    found = await refused(method[type(request_)](request_))
    assert found[0] == reason
    assert found[2] == fields
    assert words in found[1]
    assert not models.model.requests


async def test_a_fault_that_the_model_finds_is_told_by_its_place_in_the_request(stub):
    options = pb.GenerateOptions(negative_prompt="too long")
    _, message, fields, _ = await refused(stub.Generate(pb.GenerateRequest(prompt=ASK, options=options)))
    assert fields == ["options.negative_prompt"]
    request = pb.EditRequest(image=png(photograph()), options=pb.EditOptions(generate=options))
    _, message, fields, _ = await refused(stub.Edit(request))
    assert (fields, message) == (
        ["options.generate.negative_prompt"],
        "options.generate.negative_prompt has 300 tokens",
    )


async def test_calls_of_all_kinds_go_on_at_the_same_time(stub):
    picture = png(photograph())
    outpaint = pb.OutpaintRequest(image=picture, options=pb.OutpaintOptions(top_px=16))
    events = await asyncio.gather(
        *(ask(stub.Generate(pb.GenerateRequest(prompt=ASK))) for _ in range(4)),
        *(ask(stub.Edit(pb.EditRequest(image=picture))) for _ in range(4)),
        *(ask(stub.Outpaint(outpaint)) for _ in range(4)),
    )
    assert all("finished" in each for each in events)
