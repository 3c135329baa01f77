"""The library with the tiny pipeline: what there is, what is loaded, who keeps it, who has to go."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from limner.core.errors import BadArgument, Cancelled, ModelNotInstalled, OutOfMemory, UnknownModel
from limner.diffusion import library as module
from limner.diffusion.config import DiffusionConfig
from limner.diffusion.library import Library
from limner.diffusion.model import Request
from limner.diffusion.parameters import Parameters
from limner.diffusion.plan import Plan
from limner.engine.catalog import State
from limner.engine.store import Store
from limner.runtime.config import ConfigError
from limner.runtime.job import Job


@pytest.fixture
def library(configured, monkeypatch):
    """`library(**settings)`, whose models are loaded in no time and do nothing."""

    def read(self, place, plan, step):
        step(module.PARTS + 1)
        return SimpleNamespace(name=place.name)

    monkeypatch.setattr(Library, "_read", read)
    return configured


@pytest.fixture
def configured(tiny_sd3, tmp_path, monkeypatch):
    """`configured(**settings)`: with the models tiny and other, which are the same files."""
    from limner.diffusion.sd3.model import Sd3Model

    monkeypatch.setattr(Sd3Model, "profile", lambda self: None)  # seconds that are measured elsewhere

    def make(more_sources=(), **settings):
        sources = {"tiny": str(tiny_sd3), "other": str(tiny_sd3), **dict(more_sources)}
        given = {"default_model": "tiny", "hub_cache": str(tmp_path / "hub"), "precision": "fp32", "device": "cpu"}
        return Library(DiffusionConfig(sources=sources, **{**given, **settings}), Store(tmp_path / "models"))

    return make


def job_of(events=None, deadline=None):
    return Job(seed=0, previews=False, deadline=deadline, publish=lambda kind, event: (events or []).append(event))


def test_known_models_and_ones_own_are_offered_before_anything_is_loaded(library):
    models = library()
    assert models.state("tiny") is State.INSTALLED
    assert models.state("sd3.5-large") is State.NOT_INSTALLED
    assert {card.name for card in models.cards("generate")} == {
        "sd3.5-large",
        "sd3.5-large-turbo",
        "sd3.5-medium",
        "sd3-medium",
        "limner-sketch",
        "tiny",
        "other",
    }
    assert {"sdxl-inpaint", "sd1.5-inpaint", "tiny"} <= {card.name for card in models.cards("edit")}
    card = models.card("tiny")
    assert (card.task, card.size_multiple) == ("generate", 16)
    assert card.memory_estimate_bytes > 1 << 20
    placement = models.placement("tiny")
    assert (placement.device, placement.precision, placement.engine) == ("cpu", "fp32", "torch")


def test_a_request_without_a_model_gets_the_default_or_the_first_that_is_there(library):
    assert library().model_for(None, "generate") == "tiny"
    assert library(default_edit_model="other").model_for(None, "edit") == "other"
    assert library(default_model="sd3.5-large").model_for(None, "generate") == "tiny"
    assert library(default_model="sd3.5-large", offline=False).model_for(None, "generate") == "sd3.5-large"
    assert library(default_model="limner-sketch").model_for(None, "edit") == "limner-sketch"


def test_unknown_models_are_refused_with_the_names_of_the_task(library):
    models = library()
    with pytest.raises(
        UnknownModel,
        match="no model 'sdxl-inpaint' here that can generate; there are: limner-sketch, other, sd3-medium",
    ):
        models.model_for("sdxl-inpaint", "generate")
    assert models.model_for("sdxl-inpaint", "edit") == "sdxl-inpaint"
    for ask in (models.variant, models.lease, models.card, models.get, models.unload, models.placement):
        with pytest.raises(UnknownModel):
            ask("nothing")


def test_what_is_not_installed_says_how_to_mend_it(library):
    models = library()
    with pytest.raises(ModelNotInstalled, match=r"limner models pull sd3\.5-large"):
        models.variant("sd3.5-large")
    with pytest.raises(ModelNotInstalled, match=r"limner models pull sd3\.5-large"):
        models.lease("sd3.5-large")
    assert library(offline=False).variant("sd3.5-large").step_count == 40


def test_a_model_of_ones_own_that_is_not_there_is_told_as_such(library, tmp_path):
    models = library(default_model="gone", more_sources={"gone": str(tmp_path / "gone")})
    for ask in (lambda: models.model_for("gone", "edit"), lambda: models.variant("gone"), lambda: models.lease("gone")):
        with pytest.raises(ModelNotInstalled, match=r"gone is not installed: there is no .*/gone"):
            ask()
    assert models.state("gone") is State.NOT_INSTALLED
    assert models.model_for(None, "generate") == "tiny"  # stands in for it
    assert "gone" in {card.name for card in models.cards()}


def test_a_default_of_which_nothing_is_known_is_a_fault_of_the_configuration(library):
    with pytest.raises(ConfigError, match=r"default_model is 'nothing'.*diffusion\.sources"):
        library(default_model="nothing")


def test_facts_of_ones_own_models_come_from_their_files(library):
    facts = library().variant("tiny")
    assert (facts.name, facts.family, facts.layer_count, facts.max_side, facts.shift) == ("tiny", "sd3", 4, 512, 3.0)
    assert facts.tasks == {"generate", "edit"}


def test_a_leased_model_is_loaded_once_and_stays(library):
    models = library()
    events = []
    job = Job(seed=0, previews=False, deadline=None, publish=lambda kind, event: events.append(event))
    with models.lease("tiny", job) as first:
        assert models.state("tiny") is State.LOADED
        assert [event.stage for event in events] == ["load"] * len(events)
        assert events[-1].step == events[-1].step_count
        with models.lease("tiny") as second:
            assert second.model is first.model
        models.unload("tiny")
        assert models.state("tiny") is State.LOADED  # until the first is over
        assert models.measured("tiny").precision == "fp32"
    assert models.state("tiny") is State.INSTALLED


def test_closing_a_lease_twice_counts_once(library):
    models = library()
    first, second = models.lease("tiny"), models.lease("tiny")
    first.close()
    first.close()
    models.unload("tiny")
    assert models.state("tiny") is State.LOADED
    second.close()
    assert models.state("tiny") is State.INSTALLED


def test_digests_are_known_once_a_model_was_loaded_and_change_with_its_files(library, tiny_sd3):
    models = library()
    assert models.digest("tiny") == ""
    models.get("tiny")
    found = models.digest("tiny")
    assert len(found) == 64
    models.unload("tiny")
    assert models.digest("tiny") == found
    assert library().digest("tiny") == found  # of another start
    assert library(t5=False).digest("tiny") not in ("", found)


def plan_of(needed_bytes):
    """A planner under which each model takes so many bytes."""

    def plan(shape, hardware, **_):
        if needed_bytes > hardware.free_bytes:
            raise OutOfMemory("too little", metadata={"needed_bytes": str(needed_bytes)})
        placement = module.Placement("cpu", "fp32", "torch", "a test")
        return Plan(
            placement=placement,
            dtype="fp32",
            quantisation="none",
            t5_quantisation="none",
            text_encoders="device",
            text_dtype="fp32",
            vae_dtype="fp32",
            t5=True,
            group_offload=False,
            vae_tiling=False,
            needed_bytes=needed_bytes,
            cpu_needed_bytes=0,
            parts={},
        )

    return plan


def test_the_model_that_was_not_used_for_longest_makes_room(library, tiny_sd3, monkeypatch):
    monkeypatch.setattr(module, "make_plan", plan_of(60 << 20))
    models = library(memory_budget_mb=130, more_sources={"third": str(tiny_sd3)})
    for name in ("tiny", "other", "tiny", "third"):
        models.get(name)
    loaded = [name for name in ("tiny", "other", "third") if models.state(name) is State.LOADED]
    assert loaded == ["tiny", "third"]


def test_a_model_in_use_makes_no_room(library, monkeypatch):
    monkeypatch.setattr(module, "make_plan", plan_of(60 << 20))
    models = library(memory_budget_mb=100)
    with models.lease("tiny"), pytest.raises(OutOfMemory) as caught:
        models.lease("other")
    assert caught.value.retry_after is not None
    models.get("other")
    assert (models.state("tiny"), models.state("other")) == (State.INSTALLED, State.LOADED)


def test_memory_that_is_not_there_is_told_with_the_numbers(library):
    with pytest.raises(OutOfMemory, match="1 MiB are to be had"):
        library(memory_budget_mb=1).lease("tiny")


def test_what_a_device_cannot_do_is_told(library):
    with pytest.raises(BadArgument, match="fp8"):
        library(quantisation="fp8").lease("tiny")


def test_calls_that_wait_for_a_load_share_it_and_can_give_up(library, monkeypatch):
    models = library()
    begun, go_on, loads = threading.Event(), threading.Event(), []
    load = Library._load

    def slow(self, place, step):
        loads.append(place.name)
        begun.set()
        assert go_on.wait(20)
        return load(self, place, step)

    monkeypatch.setattr(Library, "_load", slow)
    leases = []
    threads = [threading.Thread(target=lambda: leases.append(models.lease("tiny"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(20)
    impatient = job_of()
    impatient.cancel()
    with pytest.raises(Cancelled):
        models.lease("tiny", impatient)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert (len(leases), loads) == (3, ["tiny"])
    assert len({id(lease.model) for lease in leases}) == 1


def test_a_call_that_is_cancelled_while_its_model_is_loaded_leaves_nothing(library):
    models = library()
    job = job_of(deadline=time.monotonic() + 0.001)
    time.sleep(0.01)
    with pytest.raises(Exception, match="deadline"):
        models.lease("tiny", job)
    assert models.state("tiny") is State.INSTALLED
    models.lease("tiny").close()


def test_loras_are_cards_that_can_be_loaded_and_unloaded(library, tmp_path):
    import torch
    from safetensors.torch import save_file

    (tmp_path / "models" / "loras").mkdir(parents=True)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, 64), f"{layer}.lora_B.weight": torch.ones(64, 2)}
    save_file(tensors, tmp_path / "models" / "loras" / "style.safetensors")
    models = library()
    assert [card.name for card in models.cards("lora")] == ["style"]
    assert "style" in {card.name for card in models.cards()}
    assert "style" not in {card.name for card in models.cards("generate")}
    assert models.state("style") is State.INSTALLED
    models.get("style")
    assert (models.state("style"), len(models.digest("style"))) == (State.LOADED, 64)
    models.unload("style")
    assert models.state("style") is State.INSTALLED
    assert models.default("lora") == ""
    with pytest.raises(UnknownModel):
        models.lease("style")


def test_a_loaded_model_makes_pictures_and_t5_is_left_out_where_it_is_not_wanted(configured):
    models = configured(t5=False)
    events = []
    job = Job(seed=0, previews=False, deadline=None, publish=lambda kind, event: events.append(event))
    with models.lease("tiny", job) as lease:
        assert events[-1].step == events[-1].step_count
        assert lease.model._text._components.text_encoder_3 is None
        facts = models.variant("tiny")
        parameters = Parameters(
            prompt="a red apple",
            negative_prompt="",
            width=32,
            height=32,
            step_count=2,
            guidance_scale=1.0,
            strength=1.0,
            sampler=facts.sampler,
            shift=facts.shift,
            text_length=16,
            truncate_prompt=False,
            skip_layers=None,
            step_cache=None,
            loras=(),
            seed=0,
            image_count=1,
        )
        (row,) = lease.model.prepare(Request(parameters), lambda: None)
        while row.step < row.step_count:
            assert lease.model.advance([row]) == [None]
        assert lease.model.decode(row).shape == (32, 32, 3)


def test_nothing_of_torch_is_imported_before_a_model_is_loaded(tiny_sd3, tmp_path):
    script = f"""
import sys
from pathlib import Path
from limner.diffusion.config import DiffusionConfig
from limner.diffusion.library import Library
from limner.diffusion.model import Request
from limner.diffusion.parameters import Parameters
from limner.engine.store import Store
models = Library(
    DiffusionConfig(sources={{"tiny": {str(tiny_sd3)!r}}}, default_model="tiny"), Store(Path({str(tmp_path)!r}))
)
models.variant("tiny"), models.placement("tiny"), models.cards(), models.state("tiny"), models.digest("tiny")
assert not {{"torch", "diffusers", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_unloading_what_is_being_loaded_takes_nothing_from_who_waits_for_it(configured, monkeypatch):
    began, go_on = threading.Event(), threading.Event()

    def read(self, place, plan, step):
        began.set()
        assert go_on.wait(10)
        return SimpleNamespace(name=place.name)

    monkeypatch.setattr(Library, "_read", read)
    models, leases = configured(), []
    caller = threading.Thread(target=lambda: leases.append(models.lease("tiny")))
    caller.start()
    assert began.wait(10)
    models.unload("tiny")
    go_on.set()
    caller.join()
    (lease,) = leases
    assert lease.model.name == "tiny"
    assert models.state("tiny") is State.LOADED
    models.unload("tiny")
    assert models.state("tiny") is State.LOADED  # while it is used
    lease.close()
    assert models.state("tiny") is State.INSTALLED


def test_a_call_that_ends_while_its_model_is_loaded_keeps_nothing(configured, monkeypatch):
    job = job_of()

    def read(self, place, plan, step):
        job.cancel()
        step(1)
        raise AssertionError("the call is over")

    monkeypatch.setattr(Library, "_read", read)
    models = configured()
    with pytest.raises(Cancelled):
        models.lease("tiny", job)
    assert models.state("tiny") is State.INSTALLED
    monkeypatch.setattr(Library, "_read", lambda self, place, plan, step: SimpleNamespace(name=place.name))
    models.lease("tiny").close()  # nobody holds up who comes next
