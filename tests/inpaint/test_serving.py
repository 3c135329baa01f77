"""Several networks in one server: small real ONNX files, through the services."""

from __future__ import annotations

import asyncio
import io
import json
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from limner.core.card import ModelCard
from limner.core.codec import Limits
from limner.core.errors import LimnerError
from limner.core.placement import Placement
from limner.engine import memory
from limner.engine.catalog import Catalog
from limner.engine.machine import Machine
from limner.engine.networks import open_network
from limner.engine.servicer import ModelServicer
from limner.engine.session import open_session
from limner.engine.store import Store
from limner.inpaint.config import InpaintConfig
from limner.inpaint.filler import Options, Window
from limner.inpaint.network import ImageMaskFiller
from limner.inpaint.servicer import InpaintServicer
from limner.runtime.device import Device
from limner.runtime.server import start
from limner.runtime.status import from_status
from limner.v1 import images_pb2, inpaint_pb2, inpaint_pb2_grpc, models_pb2, models_pb2_grpc

BALLAST = 10_000_000  # values, 40 MB, that each network carries
LEVELS = {"dark": 51, "light": 204}  # what each network fills holes with
ENGINES = pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])


def network(level: float) -> onnx.ModelProto:
    """A network that fills holes with `level`; it reads that from a large table, at a place it computes."""
    table = np.tile(np.array([[level * 2], [level]], np.float32), (1, BALLAST // 2))
    nodes = [
        helper.make_node("ReduceMax", ["mask"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "row"], ["values"], axis=0),
        helper.make_node("ReduceMax", ["values"], ["level"], keepdims=0),
        helper.make_node("Sub", ["one", "mask"], ["kept"]),
        helper.make_node("Mul", ["image", "kept"], ["outside"]),
        helper.make_node("Mul", ["mask", "level"], ["inside"]),
        helper.make_node("Add", ["outside", "inside"], ["filled"]),
    ]
    shapes = {"image": ["n", 3, "h", "w"], "mask": ["n", 1, "h", "w"], "filled": ["n", 3, "h", "w"]}
    image, mask, filled = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    tensors = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.ones(1, np.float32), "one")]
    graph = helper.make_graph(nodes, "level", [image, mask], [filled], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


class Source:
    """A model's file. `fails` is what filling raises instead."""

    def __init__(self, name: str) -> None:
        self.CARD = ModelCard(name, "inpaint", "", "", "", exports=("network.onnx",), precisions=("fp32",))
        self.fails: Exception | None = None
        self.in_memory: weakref.WeakSet[ImageMaskFiller] = weakref.WeakSet()

    def window(self, options: Options) -> Window:
        return Window(256, 64, context=3.0, least=64, step=64, most_at_once=2)

    def load(self, placement: Placement, store: Store) -> ImageMaskFiller:
        filler = ImageMaskFiller(open_network(store, self.CARD, "network.onnx", placement), multiple=8)
        fill = filler.fill

        def fill_or_fail(*arguments: Any) -> Any:
            if self.fails is not None:
                raise self.fails
            return fill(*arguments)

        filler.fill = fill_or_fail  # type: ignore[method-assign]
        self.in_memory.add(filler)
        return filler


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("models"))
    for name, level in LEVELS.items():
        (store.root / name).mkdir()
        onnx.save(network(level / 255), store.root / name / "network.onnx")
        record = {"files": {"network.onnx": {"digest": f"sha256:{name}"}}}
        (store.root / name / "card.json").write_text(json.dumps(record))
    return store


@pytest.fixture
def sources() -> dict[str, Source]:
    return {name: Source(name) for name in LEVELS}


Serve = Callable[..., Any]


@pytest.fixture
async def serve(store: Store, sources: dict[str, Source]) -> AsyncIterator[Serve]:
    """`await serve(engine, memory_budget_mb=...)`: stubs of both services."""
    ends: list[Any] = []

    async def serve(engine: str, **settings: Any) -> tuple[Any, Any]:
        open_session(store.root / "dark" / "network.onnx", Placement("cpu", "fp32", engine, ""))  # the library's memory
        config = InpaintConfig(port=0, thread_count=1, **settings)
        machine = Machine(frozenset({engine}))
        catalog = Catalog(sources, defaults={}, server="inpaint", config=config, store=store, machine=machine)
        device = Device("cpu", 8)
        limits = Limits(config.max_image_bytes, config.max_image_pixels)

        async def build(server: Any, config: Any) -> None:
            servicer = InpaintServicer(sources, catalog, device, limits)
            server.add(inpaint_pb2_grpc.add_InpaintServiceServicer_to_server, servicer, "limner.v1.InpaintService")
            models = ModelServicer(catalog, device)
            server.add(models_pb2_grpc.add_ModelServiceServicer_to_server, models, "limner.v1.ModelService")

        server = await start("inpaint", config, build)
        await server.__aenter__()
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        ends.extend([lambda: server.__aexit__(None, None, None), channel.close, device.close])
        return inpaint_pb2_grpc.InpaintServiceStub(channel), models_pb2_grpc.ModelServiceStub(channel)

    yield serve
    for end in reversed(ends):
        if (waiting := end()) is not None:
            await waiting


def raw(pixels: np.ndarray) -> images_pb2.Image:
    height, width = pixels.shape[:2]
    return images_pb2.Image(
        raw=images_pb2.RawImage(
            width_px=width,
            height_px=height,
            channel_count=pixels.size // (height * width),
            bit_depth=8,
            data=pixels.tobytes(),
        )
    )


def request(model: str, side: int = 64) -> inpaint_pb2.InpaintRequest:
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 255
    return inpaint_pb2.InpaintRequest(
        image=raw(np.full((side, side, 3), 128, np.uint8)),
        mask=raw(mask),
        options=inpaint_pb2.InpaintOptions(model=model),
    )


async def fill(stub: Any, model: str) -> tuple[int, list[str], str]:
    """Return the level in the hole's middle, the stages of the call and the digest it names."""
    events = [event async for event in stub.Inpaint(request(model))]
    pixels = np.asarray(Image.open(io.BytesIO(events[-2].result.image.encoded)))
    finished = events[-1].finished
    return int(pixels[24, 24, 0]), [timing.stage for timing in finished.timings], finished.model_digest


async def states(models: Any) -> dict[str, bool]:
    listed = (await models.ListModels(models_pb2.ListModelsRequest())).models
    return {model.name: model.state == models_pb2.MODEL_STATE_LOADED for model in listed}


@ENGINES
async def test_two_networks_serve_side_by_side_and_are_loaded_once(serve: Serve, engine: str) -> None:
    inpaint, models = await serve(engine)
    both = await asyncio.gather(*(fill(inpaint, name) for name in LEVELS))
    assert [level for level, _, _ in both] == list(LEVELS.values())
    assert all("load" in stages for _, stages, _ in both)
    assert [digest for _, _, digest in both] == list(LEVELS)
    assert await states(models) == {"dark": True, "light": True}
    for name in [*LEVELS, *LEVELS]:
        level, stages, _ = await fill(inpaint, name)
        assert level == LEVELS[name]
        assert "load" not in stages
    told = (await models.GetModel(models_pb2.GetModelRequest(name="dark"))).model
    assert 35_000_000 < told.memory_loaded_bytes < 150_000_000
    assert told.memory_call_bytes > 0
    assert (told.memory_call_pixels, told.digest) == (256 * 256, "dark")


@ENGINES
async def test_under_a_budget_for_one_they_take_turns(
    serve: Serve, sources: dict[str, Source], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """With memory that is counted, 100 MiB a network: the process's own goes up and down by what other tests left."""

    def in_use(device: str) -> int:
        return sum(len(source.in_memory) for source in sources.values()) * 100 << 20

    monkeypatch.setattr(memory, "in_use", in_use)
    monkeypatch.setattr(memory, "peak_of", lambda run, device: (run(), in_use(device) + (10 << 20)))
    inpaint, models = await serve(engine, memory_budget_mb=190)
    for name in [*LEVELS, *LEVELS]:
        level, stages, _ = await fill(inpaint, name)
        assert level == LEVELS[name]
        assert "load" in stages
        assert await states(models) == {"dark": name == "dark", "light": name == "light"}
    assert "load" not in (await fill(inpaint, "light"))[1]
    async for _ in models.UnloadModel(models_pb2.UnloadModelRequest(name="light")):
        pass
    assert await states(models) == {"dark": False, "light": False}
    assert "load" in (await fill(inpaint, "light"))[1]


async def refused(responses: Any) -> tuple[LimnerError, list[str]]:
    """Return the error that the call ends with and the events before."""
    events = []

    async def read() -> None:
        async for event in responses:
            events.append(event.WhichOneof("event"))

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await read()
    assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return from_status(ended.value), events


async def test_a_call_that_cannot_be_had_is_refused_before_it_starts(serve: Serve, sources: dict[str, Source]) -> None:
    sources["dark"].CARD = replace(sources["dark"].CARD, memory_per_pixel_bytes=40_000)
    inpaint, models = await serve("openvino", memory_budget_mb=300)
    error, events = await refused(inpaint.Inpaint(request("dark", 160)))  # 1 GB
    assert "started" not in events
    assert int(error.metadata["needed_bytes"]) > int(error.metadata["free_bytes"]) == 300 << 20
    assert "LIMNER_INPAINT_MEMORY_BUDGET_MB" in error.message
    assert await states(models) == {"dark": False, "light": False}
    assert (await fill(inpaint, "light"))[0] == LEVELS["light"]


async def test_a_network_that_cannot_be_loaded_for_its_size_is_refused(
    serve: Serve, sources: dict[str, Source]
) -> None:
    sources["dark"].CARD = replace(sources["dark"].CARD, memory_estimate_bytes=1 << 30)
    inpaint, models = await serve("openvino", memory_budget_mb=300)
    error, _ = await refused(models.LoadModel(models_pb2.LoadModelRequest(name="dark")))
    assert (error.metadata["needed_bytes"], error.metadata["free_bytes"]) == (str(1 << 30), str(300 << 20))
    assert (await fill(inpaint, "light"))[0] == LEVELS["light"]


async def test_memory_that_runs_out_at_work_is_told_and_the_server_goes_on(
    serve: Serve, sources: dict[str, Source]
) -> None:
    inpaint, _ = await serve("openvino")
    await fill(inpaint, "dark")
    sources["dark"].fails = MemoryError()
    error, _ = await refused(inpaint.Inpaint(request("dark")))
    assert {"needed_bytes", "free_bytes"} <= error.metadata.keys()
    assert "ran out while dark was at work" in error.message
    sources["dark"].fails = None
    assert (await fill(inpaint, "dark"))[0] == LEVELS["dark"]
