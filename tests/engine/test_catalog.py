from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import grpc
import pytest

from limner.core.card import ModelCard
from limner.core.errors import ModelNotInstalled, UnknownModel
from limner.engine.catalog import Catalog, State
from limner.engine.machine import Machine
from limner.engine.servicer import ModelServicer
from limner.engine.store import Store
from limner.runtime.config import ConfigError, ServerConfig
from limner.runtime.device import Device
from limner.runtime.server import start
from limner.v1 import models_pb2, models_pb2_grpc

ZEN4 = Machine(frozenset({"onnxruntime", "openvino"}), frozenset({"avx512_bf16"}))


class Source:
    """A model's module: counts how often it is loaded, and keeps the placement it was loaded with."""

    def __init__(self, card):
        self.CARD = card
        self.loads = []
        self.fails = False

    def load(self, placement, store):
        if self.fails:
            raise RuntimeError("could not be loaded")
        self.loads.append(placement)
        return SimpleNamespace(name=self.CARD.name)


@pytest.fixture
def sources(card_at, tmp_path, weights):
    """telea, which needs nothing; lama, whose weights can be pulled from a file; sam of another task, of the same."""
    (tmp_path / "lama.onnx").write_bytes(weights)
    lama = card_at((tmp_path / "lama.onnx").as_uri(), digest="abc", size_multiple=8, memory_estimate_bytes=200 << 20)
    telea = ModelCard("telea", "inpaint", "Fast marching.", "Apache-2.0", "Telea 2004")
    return {
        "lama": Source(lama),
        "telea": Source(telea),
        "sam": Source(replace(lama, name="sam", task="segment")),
    }


@pytest.fixture
def make_catalog(sources, tmp_path):
    """`make_catalog(defaults, machine, **config)`."""

    def make_catalog(defaults=None, machine=ZEN4, **config):
        return Catalog(
            sources,
            defaults={"inpaint": "telea"} if defaults is None else defaults,
            server="inpaint",
            config=ServerConfig(**config),
            store=Store(tmp_path / "models"),
            machine=machine,
        )

    return make_catalog


def test_a_model_is_loaded_on_first_use_and_kept(make_catalog, sources):
    catalog = make_catalog(thread_count=3)
    assert sources["telea"].loads == []
    model = catalog.get("telea")
    assert catalog.get("telea") is model
    assert [placement.engine for placement in sources["telea"].loads] == ["opencv"]
    assert sources["telea"].loads[0].thread_count == 3


def test_an_unloaded_model_is_loaded_again(make_catalog, sources):
    catalog = make_catalog()
    catalog.get("telea")
    catalog.unload("telea")
    assert catalog.state("telea") is State.INSTALLED
    catalog.get("telea")
    assert len(sources["telea"].loads) == 2


def test_threads_that_ask_at_once_load_once(make_catalog, sources):
    catalog = make_catalog()
    threads = [threading.Thread(target=catalog.get, args=("telea",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sources["telea"].loads) == 1


def test_a_load_that_failed_is_tried_again(make_catalog, sources):
    catalog = make_catalog()
    sources["telea"].fails = True
    with pytest.raises(RuntimeError, match="could not be loaded"):
        catalog.get("telea")
    sources["telea"].fails = False
    assert catalog.get("telea").name == "telea"


def test_weights_that_are_not_here_are_named_with_the_command(make_catalog, sources):
    catalog = make_catalog()
    with pytest.raises(ModelNotInstalled, match=r"\(lama\.onnx missing\): limner models pull lama"):
        catalog.get("lama")
    catalog.store.pull(catalog.card("lama"))
    assert catalog.get("lama").name == "lama"
    assert sources["lama"].loads[0].precision == "bf16"


def test_states_follow_the_store_and_the_memory(make_catalog):
    catalog = make_catalog()

    def states():
        return {name: catalog.state(name) for name in ("lama", "telea", "sam")}

    assert states() == {"lama": State.NOT_INSTALLED, "telea": State.INSTALLED, "sam": State.NOT_INSTALLED}
    catalog.store.pull(catalog.card("lama"))
    catalog.get("lama")
    catalog.get("telea")
    assert states() == {"lama": State.LOADED, "telea": State.LOADED, "sam": State.NOT_INSTALLED}


def test_a_network_without_an_engine_counts_as_not_installed(make_catalog):
    catalog = make_catalog(machine=Machine(frozenset()))
    catalog.store.pull(catalog.card("lama"))
    assert catalog.state("lama") is State.NOT_INSTALLED
    with pytest.raises(ModelNotInstalled, match=r"limner\[openvino\]"):
        catalog.get("lama")


def test_no_name_means_the_default_of_the_task(make_catalog):
    catalog = make_catalog()
    assert catalog.card(None, "inpaint").name == "telea"
    assert catalog.card("", "inpaint").name == "telea"
    assert catalog.card("lama", "inpaint").name == "lama"


def test_a_default_that_is_not_installed_gives_way_until_it_is(make_catalog):
    catalog = make_catalog({"inpaint": "lama"})
    assert catalog.default("inpaint") == "telea"
    catalog.store.pull(catalog.card("lama"))
    assert catalog.default("inpaint") == "lama"


def test_a_task_with_nothing_installed_keeps_its_default_so_that_the_error_names_it(make_catalog):
    catalog = make_catalog()
    assert catalog.card(None, "segment").name == "sam"


@pytest.mark.parametrize(
    ("name", "task", "available"),
    [
        ("lame", "inpaint", "lama,telea"),
        ("sam", "inpaint", "lama,telea"),
        ("lame", None, "lama,sam,telea"),
        (None, "upscale", ""),
    ],
)
def test_an_unknown_model_is_answered_with_those_of_the_task(make_catalog, name, task, available):
    with pytest.raises(UnknownModel) as unknown:
        make_catalog().card(name, task)
    assert unknown.value.metadata["available"] == available


@pytest.mark.parametrize(
    ("defaults", "config", "mend"),
    [
        ({"inpaint": "lame"}, {}, "lama, telea"),
        ({"inpaint": "sam"}, {}, "lama, telea"),
        (None, {"device": "cuda:0"}, "driver finds no GPU"),
        (None, {"precision": "fp64"}, "fp32, fp16, bf16"),
    ],
)
def test_settings_that_cannot_be_had_stop_the_server_at_its_start(make_catalog, defaults, config, mend):
    with pytest.raises(ConfigError, match=mend):
        make_catalog(defaults, **config)


@pytest.fixture
async def models(make_catalog):
    """A stub of ModelService over a real channel, with telea as the default."""
    catalog, device = make_catalog(), Device("cpu", 4)
    catalog.store.pull(catalog.card("lama"))

    async def build(server, config):
        server.add(
            models_pb2_grpc.add_ModelServiceServicer_to_server, ModelServicer(catalog, device), "limner.v1.ModelService"
        )

    async with (
        await start("inpaint", ServerConfig(), build) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield models_pb2_grpc.ModelServiceStub(channel)
    device.close()


async def test_models_are_listed_by_name_with_what_is_known_of_them(models):
    response = await models.ListModels(models_pb2.ListModelsRequest())
    assert [model.name for model in response.models] == ["lama", "sam", "telea"]
    lama, _, telea = response.models
    assert (lama.server, lama.task, lama.licence, lama.digest) == ("inpaint", "inpaint", "Apache-2.0", "abc")
    assert (lama.size_multiple, lama.memory_estimate_bytes) == (8, 200 << 20)
    assert list(lama.precisions) == ["fp32", "bf16"]
    assert (lama.default, telea.default) == (False, True)
    assert not lama.HasField("placement")
    only = await models.ListModels(models_pb2.ListModelsRequest(task="segment"))
    assert [model.name for model in only.models] == ["sam"]


@pytest.mark.parametrize(
    ("machine", "precision"),
    [(Machine(frozenset()), "auto"), (ZEN4, "int8")],
    ids=["without any engine", "without a file of the precision asked for"],
)
async def test_models_that_cannot_run_here_are_listed_all_the_same(make_catalog, sources, machine, precision):
    sources["lama"].CARD = replace(sources["lama"].CARD, digest="", exports=("network.onnx",))
    catalog, device = make_catalog(machine=machine, precision=precision), Device("cpu", 4)
    response = await ModelServicer(catalog, device).ListModels(models_pb2.ListModelsRequest(), None)
    assert [(model.name, model.digest) for model in response.models] == [("lama", ""), ("sam", "abc"), ("telea", "")]
    device.close()


async def test_an_unknown_model_is_not_found(models):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await models.GetModel(models_pb2.GetModelRequest(name="lame"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert "lama" in refused.value.details()


async def test_loading_tells_where_and_why_and_unloading_frees_again(models):
    loading = [event async for event in models.LoadModel(models_pb2.LoadModelRequest(name="lama"))]
    fields = [event.WhichOneof("event") for event in loading]
    assert fields[0] == "queued"
    assert fields[-2:] == ["result", "finished"]
    result = loading[-2].result
    assert result.state == models_pb2.MODEL_STATE_LOADED
    assert (result.placement.engine, result.placement.precision) == ("openvino", "bf16")
    assert "AVX512-BF16" in result.placement.reason
    assert loading[-1].finished.model_digest == "abc"
    unloading = [event async for event in models.UnloadModel(models_pb2.UnloadModelRequest(name="lama"))]
    assert unloading[-2].result.state == models_pb2.MODEL_STATE_INSTALLED
    assert not unloading[-2].result.HasField("placement")


async def test_loading_what_is_not_installed_fails_with_the_command(models):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        _ = [event async for event in models.LoadModel(models_pb2.LoadModelRequest(name="sam"))]
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "limner models pull sam" in refused.value.details()


async def test_a_model_without_a_name_is_not_found_rather_than_a_default(models):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await models.GetModel(models_pb2.GetModelRequest())
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
