"""Models that take turns within a memory budget. They hold real memory, so that what is measured is real."""

from __future__ import annotations

import gc
import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from limner.core.card import ModelCard
from limner.core.errors import OutOfMemory
from limner.core.placement import Placement
from limner.engine import memory
from limner.engine.budget import Budget
from limner.engine.catalog import Catalog, State
from limner.engine.machine import Machine
from limner.engine.store import Store
from limner.runtime.config import ServerConfig
from limner.runtime.job import Job

MIB = 1 << 20
PIXELS = 256 * 256
CARD = ModelCard("small", "inpaint", "", "", "", precisions=("fp32",))


class Network:
    """Holds so many MiB, and takes others while it runs."""

    def __init__(self, held_mib, call_mib):
        self._held = np.ones(held_mib * MIB, np.uint8)
        self._call_mib = call_mib
        self._itself = self  # so that Python's collector alone can free it, as may be with any model

    def warm_up(self):
        return self.run(PIXELS)

    def run(self, pixels):
        np.ones(self._call_mib * MIB * pixels // PIXELS, np.uint8)
        return pixels


class Source:
    """A model's module; `fails` is what loading it raises."""

    def __init__(self, name, held_mib=0, call_mib=0, **card):
        self.CARD = replace(CARD, name=name, **card)
        self.loads = 0
        self.fails = None
        self._mib = held_mib, call_mib

    def load(self, placement, store):
        self.loads += 1
        if self.fails is not None:
            raise self.fails
        return Network(*self._mib)


@pytest.fixture
def sources():
    found = [Source(name, 60, 30) for name in "abc"]
    found.append(Source("known", 60, 25, memory_estimate_bytes=60 * MIB, memory_per_pixel_bytes=400))
    found.append(Source("telea", precisions=("native",)))
    return {source.CARD.name: source for source in found}


@pytest.fixture
def make_catalog(sources, tmp_path):
    """`make_catalog(budget_mb)`."""

    def make_catalog(budget_mb, defaults=None):
        return Catalog(
            sources,
            defaults=defaults or {},
            server="inpaint",
            config=ServerConfig(memory_budget_mb=budget_mb),
            store=Store(tmp_path / "models"),
            machine=Machine(frozenset({"openvino"})),
        )

    return make_catalog


def loaded(catalog):
    return [card.name for card in catalog.cards() if catalog.state(card.name) is State.LOADED]


def test_what_a_model_and_its_call_take_is_measured_when_it_is_loaded(make_catalog):
    catalog = make_catalog(1000)
    assert catalog.measured("a") is None
    catalog.get("a")
    measured = catalog.measured("a")
    assert 55 * MIB < measured.loaded_bytes < 75 * MIB
    assert 25 * MIB < measured.call_bytes < 40 * MIB
    assert measured.call_pixels == PIXELS
    before = memory.in_use()
    catalog.unload("a")
    assert before - memory.in_use() > 50 * MIB
    assert catalog.measured("a") == measured


def test_models_that_fit_stay_side_by_side(make_catalog, sources):
    catalog = make_catalog(1000)
    for name in "abcabc":
        catalog.get(name, pixels=PIXELS)
    assert loaded(catalog) == ["a", "b", "c"]
    assert [sources[name].loads for name in "abc"] == [1, 1, 1]


def test_the_one_not_used_for_longest_goes_and_its_memory_returns(make_catalog, sources):
    catalog = make_catalog(170)
    for name in "abc":
        catalog.get(name)
        catalog.unload(name)  # measured now
    catalog.get("telea")
    catalog.get("a")
    catalog.get("b")
    catalog.get("a")
    before = memory.in_use()
    catalog.get("c")
    assert loaded(catalog) == ["a", "c", "telea"]
    assert abs(memory.in_use() - before) < 30 * MIB
    catalog.get("b")
    assert loaded(catalog) == ["b", "c", "telea"]
    assert sources["b"].loads == 3


def test_a_larger_call_makes_room_for_itself(make_catalog):
    catalog = make_catalog(230)
    for name in "ab":
        catalog.get(name, pixels=PIXELS)
    assert loaded(catalog) == ["a", "b"]
    catalog.get("a", pixels=4 * PIXELS)
    assert loaded(catalog) == ["a"]


def test_a_call_that_cannot_be_had_is_refused_before_anything_is_loaded(make_catalog, sources):
    catalog = make_catalog(100)
    catalog.admit("known", PIXELS)  # 60 MiB and 25
    with pytest.raises(OutOfMemory, match=r"known needs about 160 MiB.*100 for this call.*100 MiB are to") as refused:
        catalog.admit("known", 4 * PIXELS)
    assert "LIMNER_INPAINT_MEMORY_BUDGET_MB" in refused.value.message
    assert "smaller picture" in refused.value.message
    assert refused.value.metadata == {"needed_bytes": str(60 * MIB + 4 * PIXELS * 400), "free_bytes": str(100 * MIB)}
    assert sources["known"].loads == 0
    catalog.admit("a", 1 << 40)  # nothing is known of it yet
    catalog.admit("telea", 1 << 40)


def test_what_was_measured_takes_the_place_of_the_card_s_estimates(make_catalog):
    catalog = make_catalog(1000)
    catalog.get("a")
    with pytest.raises(OutOfMemory, match="a needs about"):
        catalog.admit("a", 40 * PIXELS)  # 1200 MiB
    catalog.admit("a", 20 * PIXELS)


def test_a_picture_decoded_while_a_model_is_measured_does_not_refuse_its_calls_for_ever(make_catalog, monkeypatch):
    catalog = make_catalog(1000)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Network, "warm_up", lambda self: len(np.ones(200 * MIB, np.uint8)) and self.run(PIXELS))
        catalog.get("known")
    assert catalog.measured("known").call_bytes > 150 * MIB
    catalog.admit("known", 16 * PIXELS)  # 400 MiB by its card, 3200 by what was measured
    with pytest.raises(OutOfMemory):
        catalog.admit("known", 32 * PIXELS)


def test_a_model_too_large_by_itself_is_refused_and_the_others_stay(make_catalog, sources):
    sources["known"].CARD = replace(sources["known"].CARD, memory_estimate_bytes=500 * MIB)
    catalog = make_catalog(200)
    catalog.get("a")
    with pytest.raises(OutOfMemory, match=r"known needs about 500 MiB.*smaller model") as refused:
        catalog.get("known")
    assert refused.value.metadata["free_bytes"] == str(200 * MIB)
    assert (loaded(catalog), sources["known"].loads) == (["a"], 0)


def test_the_machine_s_free_memory_bounds_the_budget(make_catalog, monkeypatch):
    free = 1000 * MIB
    monkeypatch.setattr(memory, "free", lambda device="cpu": free)
    catalog = make_catalog(0)  # 800 MiB
    catalog.admit("known", 25 * PIXELS)
    with pytest.raises(OutOfMemory, match="800 MiB are to be had"):
        catalog.admit("known", 30 * PIXELS)
    catalog.get("known")
    free = 100 * MIB  # others took the rest; what the loaded model has it need not get again
    for refuse in (lambda pixels: catalog.admit("known", pixels), lambda pixels: catalog.get("known", pixels=pixels)):
        refuse(3 * PIXELS)
        with pytest.raises(OutOfMemory, match="end other programs"):
            refuse(6 * PIXELS)


def test_memory_that_runs_out_while_loading_is_told_and_the_server_goes_on(make_catalog, sources):
    catalog = make_catalog(1000)
    catalog.get("a")
    sources["known"].fails = MemoryError("the engine's words")
    with pytest.raises(OutOfMemory, match="ran out while known was being loaded: it takes about 60 MiB") as told:
        catalog.get("known")
    assert told.value.metadata["needed_bytes"] == str(60 * MIB)
    assert int(told.value.metadata["free_bytes"]) > 0
    sources["known"].fails = None
    catalog.get("known")
    assert loaded(catalog) == ["a", "known"]


def test_what_a_failed_load_left_does_not_refuse_the_next(make_catalog, monkeypatch):
    def run_out(self):
        raise MemoryError

    catalog = make_catalog(1000)
    total = memory.in_use() + 120 * MIB
    monkeypatch.setattr(memory, "free", lambda device="cpu": max(total - memory.in_use(), 0))
    gc.disable()
    try:
        with monkeypatch.context() as first:
            first.setattr(Network, "warm_up", run_out)
            with pytest.raises(OutOfMemory):
                catalog.get("known", pixels=PIXELS)
        catalog.get("known", pixels=PIXELS)
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemory("the process was ended", metadata={"pid": "7"})])
def test_memory_that_runs_out_at_work_is_told_with_what_the_call_needs(make_catalog, error):
    catalog = make_catalog(1000)

    def work():
        with catalog.use("known", pixels=PIXELS) as model:
            assert isinstance(model, Network)
            raise error

    with pytest.raises(OutOfMemory) as told:
        work()
    assert {"needed_bytes", "free_bytes"} <= told.value.metadata.keys()
    if isinstance(error, OutOfMemory):
        assert told.value.message == "the process was ended"
        assert told.value.metadata["pid"] == "7"
    else:
        assert "ran out while known was at work" in told.value.message
    with catalog.use("known", pixels=PIXELS) as model:
        assert model.run(PIXELS) == PIXELS


def test_loading_is_a_stage_of_the_call_that_needs_it(make_catalog):
    catalog = make_catalog(1000)
    told = []
    job = Job(seed=0, previews=False, deadline=None, publish=lambda field, message: told.append(message))
    catalog.get("a", job=job)
    assert [(progress.stage, progress.step, progress.step_count) for progress in told] == [
        ("load", step, 3) for step in range(4)
    ]
    catalog.get("a", job=job)
    assert len(told) == 4
    assert [timing.stage for timing in job.timings] == ["load"]


def test_a_default_that_is_not_installed_is_told_in_reason_and_log(make_catalog, sources, caplog):
    sources["a"].CARD = replace(sources["a"].CARD, exports=("network.onnx",))
    with caplog.at_level(logging.INFO, "limner.models"):
        catalog = make_catalog(1000, {"inpaint": "a"})
    note = "b is the default as long as a is not installed (limner models pull a)"
    assert note in caplog.text
    assert catalog.card(None, "inpaint").name == "b"
    assert note in catalog.placement("b").reason
    assert "not installed (" not in catalog.placement("c").reason
    install(catalog, "a", {"network.onnx": b"1"})
    assert catalog.card(None, "inpaint").name == "a"
    assert "as long as" not in catalog.placement("a").reason + catalog.placement("b").reason


def install(catalog, name, files, **record):
    """Leave a model in the store as the importer does."""
    folder = catalog.store.folder(catalog.card(name))
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    record["files"] = {file: {"digest": f"sha256:{content.hex()}"} for file, content in files.items()}
    (folder / "card.json").write_text(json.dumps(record))


def test_the_digest_is_that_of_the_file_that_is_served(make_catalog, sources):
    precisions = {"precisions": ("fp32", "int8")}
    sources["a"].CARD = replace(sources["a"].CARD, exports=("network.onnx",), **precisions)
    sources["b"].CARD = replace(sources["b"].CARD, exports=("edges.onnx", "paint.onnx"), **precisions)
    catalog = make_catalog(1000)
    assert catalog.digest("telea") == catalog.digest("a") == catalog.digest("b") == ""
    install(catalog, "a", {"network.onnx": b"\1", "network.int8.onnx": b"\2"}, differences={"int8": 0.1})
    assert catalog.digest("a") == "01"
    install(catalog, "b", {"edges.onnx": b"\1", "paint.onnx": b"\2", "other.onnx": b"\3"})
    assert len(catalog.digest("b")) == 64
    record = catalog.store.folder(catalog.card("a")) / "card.json"
    record.write_text(record.read_text().replace("0.1", "0.001"))
    vnni = Machine(frozenset({"openvino"}), frozenset({"avx512_vnni"}))
    served = Catalog(sources, defaults={}, server="inpaint", config=ServerConfig(), store=catalog.store, machine=vnni)
    assert served.placement("a").precision == "int8"
    assert served.digest("a") == "02"


def test_a_loaded_model_keeps_its_digest_when_its_files_are_made_anew(make_catalog, sources):
    sources["a"].CARD = replace(sources["a"].CARD, exports=("network.onnx",))
    catalog = make_catalog(1000)
    install(catalog, "a", {"network.onnx": b"\1"})
    catalog.get("a")
    install(catalog, "a", {"network.onnx": b"\2"})
    assert catalog.digest("a") == "01"
    catalog.unload("a")
    assert catalog.digest("a") == "02"


@pytest.mark.parametrize(("precision", "share"), [("fp32", 1.0), ("bf16", 0.5)])
def test_a_network_takes_what_its_files_have_at_least(sources, precision, share):
    budget, placement = Budget(1 << 40), Placement("cpu", precision, "openvino", "")
    budget.measure(sources["a"].CARD, placement, 200 * MIB, object, lambda step: None)  # the process doesn't grow by it
    assert budget.measured("a").loaded_bytes == 200 * MIB * share
